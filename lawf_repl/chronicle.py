"""The story of a session, out of its file and without a model: what was asked, answered, corrected, learned, measured and kept.

Events become beats, in their order; an event that is damaged, or refers to one that is lost, costs no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.beats import (
    Accepted,
    Answered,
    Asked,
    Beat,
    Compared,
    Corrected,
    Exported,
    Kept,
    Listed,
    Lost,
    Measured,
    Moved,
    Noted,
    Trained,
)
from lawf_repl.course import steps_of
from lawf_repl.digest import DAMAGE, Digest, Ids, Roots, damaged, digest, ids_of, messages_of, number_of
from lawf_repl.nodes import answered_node, trained_node
from lawf_repl.records import Anchor, Completion, Curve, Node, Rerun, Scorecard, Token, TrainingResult
from lawf_repl.store import Event, Finding, Header


@dataclass(frozen=True)
class Chronicle:
    """A whole session. `digest.troubles` is everything that is wrong with its file."""

    path: Path
    header: Header
    opening: Event                # with which software it was recorded; empty where that is not known
    beats: tuple[Beat, ...]
    digest: Digest

    @property
    def troubles(self) -> tuple[Finding, ...]:
        return self.digest.troubles

    @cached_property
    def reruns(self) -> tuple[Rerun, ...]:
        """The last comparison of each prompt since the last training."""
        return latest_reruns(self.beats)

    @property
    def card(self) -> Scorecard:
        """The last scorecard since the last training; an empty one where nothing was measured."""
        after = since_training(self.beats)
        return next((beat.card for beat in reversed(after) if isinstance(beat, Measured)), Scorecard())

    @property
    def training(self) -> Trained | None:
        return next((beat for beat in reversed(self.beats) if isinstance(beat, Trained)), None)

    @property
    def adapter(self) -> Kept | None:
        """The adapter that was saved last."""
        return next((beat for beat in reversed(self.beats) if isinstance(beat, Kept)), None)


def read_chronicle(path: Path) -> Chronicle:
    """The story of a session file. Raises SessionError where not even its header can be read."""
    salvaged = store.salvage(path)
    teller = _Teller(Path(path), [event for _, event in salvaged.events])
    lost = {finding.line: Lost(finding.line or 0, "", finding.text) for finding in salvaged.troubles}
    lines = {line for line, _ in salvaged.events}
    unread = sorted((line, beat) for line, beat in lost.items() if line is not None and line not in lines)
    for line, event in salvaged.events:
        while unread and unread[0][0] < line:
            teller.add(unread.pop(0)[1])
        teller.follow(line, event)
    teller.settle()
    for _, beat in unread:
        teller.add(beat)
    row = digest(path, salvaged)
    more = [found for found in teller.troubles if found.line not in {one.line for one in row.troubles}]
    troubles = tuple(sorted([*row.troubles, *more], key=lambda one: one.line or 0))
    return Chronicle(Path(path), salvaged.header, teller.opening, tuple(teller.beats), replace(row, troubles=troubles))


def since_training(beats: tuple[Beat, ...]) -> tuple[Beat, ...]:
    """What happened after the last training; everything where there was none."""
    last = max((index for index, beat in enumerate(beats) if isinstance(beat, Trained)), default=-1)
    return beats[last + 1:]


def latest_reruns(beats: tuple[Beat, ...]) -> tuple[Rerun, ...]:
    """The last comparison of each prompt since the last training."""
    return tuple({beat.rerun.prompt: beat.rerun for beat in since_training(beats) if isinstance(beat, Compared)}.values())


class _Teller:
    """Follows the events and adds a beat for each."""

    def __init__(self, path: Path, events: list[Event]) -> None:
        self.path = path
        self.beats: list[Beat] = []
        self.troubles: list[Finding] = []
        self.opening: Event = {}
        self._names = store.former_names(events)
        self._roots = Roots()
        self._nodes: dict[int, Node] = {}
        self._cases: dict[Ids, tuple[Anchor, ...]] = {}
        self._pending: tuple[Corrected, int] | None = None  # a correction, and the number of the answer that comes of it next

    def add(self, beat: Beat) -> None:
        self.beats.append(beat)

    def follow(self, line: int, event: Event) -> None:
        """One event more, in the order of the file."""
        kind = event["type"]
        if kind != "completion":
            self.settle()
        try:
            self._roots.follow(event)
            getattr(self, f"_{kind}")(line, event["at"], event)
        except DAMAGE as error:
            self.troubles.append(Finding(line, damaged(event, error)))
            self.add(Lost(line, str(event.get("at", "")), damaged(event, error)))

    def settle(self) -> None:
        """A correction whose answer did not come, because the process ended or its line is lost."""
        if self._pending is not None:
            beat, _ = self._pending
            self._pending = None
            self.add(beat)

    def _prompt(self, line: int, at: str, event: Event) -> None:
        messages = messages_of(event)
        goes_on = type(event.get("behind")) is int and event["behind"] in self._nodes
        self.add(Asked(line, at, messages[-1:] if goes_on else messages, sum(one["role"] == "user" for one in messages)))

    def _correction(self, line: int, at: str, event: Event) -> None:
        correction = store.correction_from_json(event)
        if correction.position < 0:
            raise ValueError("a position below 0")
        before = self._nodes.get(number_of(event, "parent"))
        self._pending = (Corrected(line, at, correction, before, None), number_of(event, "node"))

    def _completion(self, line: int, at: str, event: Event) -> None:
        answer = store.completion_from_json(event)
        number = number_of(event, "node")
        if self._pending is not None and self._pending[1] != number:
            self.settle()
        pending, self._pending = self._pending, None
        beat = pending[0] if pending else None
        node = answered_node(number, beat.before if beat else None, answer, beat.correction if beat else None, int(event.get("adapter", 0)),
                             event.get("adapter_on") is True, float(event.get("confidence", 1.0)))
        self._nodes[number] = node
        self.add(replace(beat, after=node) if beat else Answered(line, at, node))

    def _undo(self, line: int, at: str, event: Event) -> None:
        node = self._nodes.get(number_of(event, "node"))
        self.add(Moved(line, at, event["node"], node.completion.text if node else None))

    def _accept(self, line: int, at: str, event: Event) -> None:
        anchors = tuple(store.anchor_from_json(one) for one in event["anchors"])
        ids, prompt = self._roots.question(number_of(event, "node"))
        self._cases.pop(ids, None)  # the one accepted last is trained last
        self._cases[ids] = anchors
        self.add(Accepted(line, at, prompt, str(event["text"]), anchors))

    def _training(self, line: int, at: str, event: Event) -> None:
        result = store.from_json(TrainingResult, event)
        prompts = [ids_of(ids) for ids in event.get("prompts", [])]
        anchors = tuple(anchor for ids in prompts for anchor in self._cases.get(ids, ()))
        recipe = event.get("recipe")
        steps = tuple(steps_of(store.from_json(Curve, event["curve"]))) if event.get("curve") is not None else ()
        if any(len(step.anchor_p) != len(result.anchor_p) for step in steps):
            raise ValueError("the curve has other anchors than the result")
        self.add(Trained(line, at, result, anchors if len(anchors) == len(result.anchor_p) else (), len(prompts),
                         dict(recipe) if isinstance(recipe, dict) else {}, steps))
        parent = self._nodes.get(number_of(event, "parent")) if event.get("node") is not None else None
        if parent is not None:
            self._nodes[event["node"]] = trained_node(event["node"], parent, result, int(event.get("adapter", 0)), 1.0)

    def _rerun(self, line: int, at: str, event: Event) -> None:
        recorded, ids = event.get("after_completion"), ids_of(event["before_ids"])
        after = store.completion_from_json(recorded) if recorded is not None else None
        before = next((node.completion for node in self._nodes.values() if node.completion.ids == ids
                       and (after is None or node.completion.prompt_ids == after.prompt_ids)), None)
        prompt, accepted, texts = str(event["prompt"]), str(event["accepted"]), (str(event["before"]), str(event["after"]))
        whole = before is not None and after is not None
        if before is None or after is None:
            before, after = in_words(*texts)
        rerun = Rerun(prompt, before, accepted, after, event.get("before_matches") is not False)
        self.add(Compared(line, at, rerun, whole))

    def _scorecard(self, line: int, at: str, event: Event) -> None:
        card = store.from_json(Scorecard, event)
        shares = [card.reliability or 0.0, *([card.probes.flips, card.probes.near_ties] if card.probes else [])]
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("a share is not between 0 and 1")
        self.add(Measured(line, at, card, latest_reruns(tuple(self.beats))))

    def _adapter(self, line: int, at: str, event: Event) -> None:
        found = store.find_adapter(self.path, event, self._names)
        self.add(Kept(line, at, str(event["path"]), str(event["sha256"]), str(found) if found else None, event.get("loaded") is True))

    def _export(self, line: int, at: str, event: Event) -> None:
        self.add(Exported(line, at, str(event["format"]), str(event["path"]), event.get("passed") is True))

    def _note(self, line: int, at: str, event: Event) -> None:
        what, text, prompt = event.get("what"), str(event.get("text", "")), event.get("prompt")
        if what == "opened" and not self.opening:
            self.opening = event
            return
        if what == "dropped":
            self._cases.pop(ids_of(event["prompt_ids"]), None)
        if not isinstance(prompt, str):
            self.add(Noted(line, at, text))
            return
        last = self.beats[-1] if self.beats else None
        name = str(what) if what in ("paraphrase", "neighbour", "held", "dropped") else text
        if isinstance(last, Listed) and last.what == name:
            self.beats[-1] = replace(last, prompts=(*last.prompts, prompt))
        else:
            self.add(Listed(line, at, name, (prompt,)))


def in_words(before: str, after: str) -> tuple[Completion, Completion]:
    """Two texts as if each word with the space before it were a token; equal words have equal ids. Their probabilities mean nothing."""
    ids: dict[str, int] = {}
    sides = [Completion((), tuple(Token(ids.setdefault(word, len(ids)), word, 1.0, 0, 0.0) for word in _words(text)), "length")
             for text in (before, after)]
    return sides[0], sides[1]


def _words(text: str) -> Iterator[str]:
    start = 0
    for index in range(1, len(text)):
        if text[index].isspace() and not text[index - 1].isspace():
            yield text[start:index]
            start = index
    if text:
        yield text[start:]


def chronicle_json(chronicle: Chronicle) -> dict[str, Any]:
    """The object of schema lawf.show/1."""
    row, opening = chronicle.digest, chronicle.opening
    return {
        "schema": "lawf.show/1", "session": str(chronicle.path), "name": row.name, "header": store.to_json(chronicle.header),
        "versions": store.to_json(opening.get("versions")), "device": store.to_json(opening.get("device")),
        "settings": store.to_json(opening.get("settings")), "fixed": row.fixed,
        "summary": {one.name: store.to_json(getattr(row, one.name)) for one in fields(row) if one.name not in ("path", "troubles")},
        "story": [{"kind": type(beat).__name__.lower(), **store.to_json(beat)} for beat in chronicle.beats],
        "troubles": [{"line": one.line, "text": one.text} for one in chronicle.troubles],
    }
