"""What a session file says, checked against itself: header, events, ids, texts, and the adapters that lie beside it.

Reading stops at the first line that is damaged; this goes on and names every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lawf_repl.errors import SessionError
from lawf_repl.records import Anchor, Completion, Correction, Curve, Scorecard, TrainingResult
from lawf_repl.store import lines as form
from lawf_repl.store.adapters import find_adapter, former_names
from lawf_repl.store.lines import Event, Header
from lawf_repl.store.values import from_json

ALTERED = f"it is not as lawf wrote it: it was changed, or what stood before it was changed or taken out; {form.RESTORE}"
_HASH = re.compile(r"[0-9a-f]{64}")


class Finding(NamedTuple):
    """Something that is not as it should be, and in which line (None: not in one)."""

    line: int | None
    text: str

    def __str__(self) -> str:
        return self.text if self.line is None else f"line {self.line}: {self.text}"


def verify(path: Path) -> list[Finding]:
    """Everything that is wrong with a session file, in the order of its lines; empty where nothing is. Needs no model."""
    path = Path(path)
    try:
        lines, tail = form.read_lines(path, skip_long=True)
        header = form.parse_header(path, lines[0])
    except SessionError as error:
        return [Finding(None, str(error))]
    found = [Finding(1, text) for text in _header(header)]
    events: dict[int, Event] = {}
    tied = True  # whether the line before still says what this one's sum begins with: one damaged line is one trouble
    for number, line in enumerate(lines[1:], start=2):
        altered = tied and form.is_altered(line, lines[number - 2])
        try:
            events[number] = form.parse_event(path, number, line)
        except SessionError as error:
            found.append(Finding(number, without_place(str(error), path, number)))
            tied = form.has_sum(line)
        else:
            found += [Finding(number, ALTERED)] * altered
            tied = True
    if cut := form.dropped(lines, tail):
        found.append(Finding(len(lines) + 1, without_place(cut, path, len(lines) + 1)))
    if header["lawf_session"] == form.SCHEMA:  # an older one is checked by its migration
        found += _Check(path, min(set(range(2, len(lines) + 1)) - events.keys(), default=len(lines) + 1)).run(events)
    return sorted(found, key=lambda one: one.line or 0)


def without_place(text: str, path: Path, number: int) -> str:
    """What is wrong with a line, as a sentence behind one that says which line of which file it is."""
    return text.removeprefix(f"session {path}: ").replace(f"line {number} ", "it ", 1).replace(form.MEND, form.RESTORE)


def _header(header: Header) -> list[str]:
    found = []
    if not re.fullmatch(r"[0-9a-f]{32}", header["id"]):
        found.append(f"expected an id of 32 hexadecimal digits, found {ascii(header['id'])[:40]}")
    if not _is_time(header["created"]):
        found.append(f"expected a time in created, found {ascii(header['created'])[:40]}")
    for key in form.MODEL_KEYS:
        value = header["model"].get(key)
        wrong = not isinstance(value, str | None) or (key.endswith("_sha256") and value and not _HASH.fullmatch(value))
        if key not in header["model"] or wrong:
            found.append(f"model.{key} is missing or damaged")
    return found


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() is not None
    except (ValueError, TypeError):
        return False


class _Check:
    """Follows the events and remembers what later ones refer to."""

    def __init__(self, path: Path, unread: int) -> None:
        self._path = path
        self._unread = unread  # the first line that could not be read
        self._number = 0       # the line at work
        self._nodes: dict[int, Completion] = {}
        self._roots: dict[int, tuple[int, ...]] = {}   # prompt ids of each node
        self._asked: tuple[int, ...] | None = None
        self._correction: tuple[int, int, Correction] | None = None  # its node, its parent
        self._accepted: set[tuple[int, ...]] = set()

    def run(self, events: dict[int, Event]) -> list[Finding]:
        found: list[Finding] = []
        checks: dict[str, Callable[[Event], str | None]] = {
            "prompt": self._prompt, "correction": self._correct, "completion": self._complete, "undo": self._move, "accept": self._accept,
            "training": self._train, "rerun": self._rerun, "scorecard": self._card,
        }
        for number, event in events.items():
            self._number = number
            if not _is_time(event["at"]):
                found.append(Finding(number, f"expected a time in at, found {ascii(event['at'])[:40]}"))
            try:
                wrong = checks[event["type"]](event) if event["type"] in checks else None
            except SessionError as error:
                wrong = str(error)
            if wrong:
                found.append(Finding(number, f"{event['type']}: {wrong}"))
        return found + self._adapters(events)

    def _prompt(self, event: Event) -> str | None:
        messages = event.get("messages")
        whole = isinstance(messages, list) and messages and all(
            isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in messages)
        self._asked = _ids(event, "prompt_ids")
        return None if whole else "expected messages with role and content"

    def _correct(self, event: Event) -> str | None:
        correction = from_json(Correction, event)
        node, parent = _number(event, "node"), _number(event, "parent")
        self._correction = (node, parent, correction)
        if parent not in self._nodes:
            return self._absent(f"answer {parent} is not there")
        if correction.removed_ids != self._nodes[parent].ids[correction.position:]:
            return f"the ids that it removes are not those of answer {parent} from position {correction.position} on"
        return None

    def _complete(self, event: Event) -> str | None:
        answer, node = from_json(Completion, event), _number(event, "node")
        taken, correction, asked = node in self._nodes, self._correction, self._asked
        self._nodes[node] = answer
        if taken:
            return f"answer {node} is there twice"
        if correction is not None and correction[0] == node and correction[1] in self._nodes:
            _, parent, act = correction
            self._correction = None
            kept = (*self._nodes[parent].ids[:act.position], *act.ids)
            if answer.prompt_ids != self._nodes[parent].prompt_ids or answer.ids[:len(kept)] != kept:
                return f"it does not go on from answer {parent} as corrected"
        elif asked is not None and answer.prompt_ids != asked:
            return "its prompt is not the one that was asked"
        return None

    def _move(self, event: Event) -> str | None:
        return None if _number(event, "node") in self._nodes else self._absent(f"answer {event['node']} is not there")

    def _accept(self, event: Event) -> str | None:
        node, ids = _number(event, "node"), _ids(event, "completion_ids")
        anchors = from_json(tuple[Anchor, ...], event.get("anchors"))
        answer = self._nodes.get(node)
        if answer is None:
            return self._absent(f"answer {node} is not there")
        self._accepted.add(answer.prompt_ids)
        if answer.ids != ids or event.get("text") != answer.text:
            return f"its ids and text are not those of answer {node}"
        for anchor in anchors:
            if not 0 <= anchor.position < len(ids) or ids[anchor.position] != anchor.chosen_id:
                return f"the anchor at position {anchor.position} is not the token that stands there"
        return None

    def _train(self, event: Event) -> str | None:
        result = from_json(TrainingResult, event)
        curve = from_json(Curve, event["curve"]) if event.get("curve") is not None else None  # younger than the schema
        prompts = from_json(tuple[tuple[int, ...], ...], event.get("prompts", []))
        if event.get("node") is not None and event.get("parent") is not None and (parent := _number(event, "parent")) in self._nodes:
            self._nodes[_number(event, "node")] = self._nodes[parent]  # the same answer, another model
        if not self._accepted.issuperset(prompts):
            return self._absent("it names a prompt whose answer was not accepted")
        if curve is not None and {len(column) for column in (curve.loss, curve.drift, curve.seconds, curve.fixed, curve.round, *curve.anchor_p)} \
                != {len(curve.step)}:
            return "the columns of its curve differ in length"
        return None if len(result.unreachable) <= len(result.anchor_p) else "more anchors were not reached than there are"

    def _absent(self, text: str) -> str | None:
        """That something is not there which a line refers to: no fault of its own behind a line that could not be read."""
        return text if self._number < self._unread else None

    def _rerun(self, event: Event) -> str | None:
        ids, after = _ids(event, "after_ids"), event.get("after_completion")
        _ids(event, "before_ids")
        if any(not isinstance(event.get(key), str) for key in ("prompt", "before", "accepted", "after")):
            return "expected prompt, before, accepted and after as text"
        if after is not None:
            answer = from_json(Completion, after)
            if answer.ids != ids or answer.text != event["after"]:
                return "ids and text of the answer afterwards differ"
        return None

    def _card(self, event: Event) -> str | None:
        from_json(Scorecard, event)
        return None

    def _adapters(self, events: dict[int, Event]) -> list[Finding]:
        names, found = former_names(events.values()), []
        for number, event in events.items():
            if event["type"] != "adapter":
                continue
            if not isinstance(event.get("path"), str) or not isinstance(event.get("sha256"), str) or not _HASH.fullmatch(event["sha256"]):
                found.append(Finding(number, "adapter: expected path and sha256"))
            elif find_adapter(self._path, event, names) is None:
                found.append(Finding(number, f"adapter: no folder {event['path']} with this sha256 is there; it was changed, moved or deleted"))
        return found


def _number(event: Event, key: str) -> int:
    value = event.get(key)
    if type(value) is not int or value < 0:
        raise SessionError(f"expected a number in {key}")
    return value


def _ids(event: Event, key: str) -> tuple[int, ...]:
    value = event.get(key)
    if not isinstance(value, list) or not all(type(id_) is int for id_ in value):
        raise SessionError(f"expected token ids in {key}")
    return tuple(value)
