"""What a session comes to, in one row: which model, which prompt, how many anchors, fixed or not, and what drifted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.errors import SessionError
from lawf_repl.records import Message
from lawf_repl.store import Event, Finding, Header, Salvaged

READ = frozenset({"prompt", "correction", "accept", "training", "rerun", "scorecard", "note"})  # what a digest is made of
DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, SessionError)  # what an event that is not as it should be gives
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Digest:
    """One session. Figures that were not measured are None."""

    path: Path
    model: str = ""
    created: str = ""          # times as in the file
    changed: str = ""          # of the last event
    prompt: str = ""           # of the first accepted answer, else the first that was asked
    prompts: int = 0           # that were asked
    cases: int = 0             # accepted answers
    anchors: int = 0           # of all accepted answers
    trainings: int = 0
    compared: int = 0          # prompts that were compared after the last training
    right: int = 0             # those among them that gave the accepted answer
    drift: float | None = None # nats a token over `probes` probes, of the last scorecard
    probes: int = 0
    troubles: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(store.SUFFIX)

    @property
    def fixed(self) -> bool | None:
        """Whether every compared prompt gives the accepted answer; None where none was compared since the last training."""
        return self.right == self.compared if self.compared else None

    @property
    def readable(self) -> bool:
        return bool(self.created)


@dataclass
class Roots:
    """Which question each answer of a session goes back to. Answers are numbered in the order in which they were made."""

    questions: list[tuple[Ids, str]] = field(default_factory=list)  # prompt ids and the last message, in order
    _of: dict[int, int] = field(default_factory=dict)               # node to question
    _parents: dict[int, int] = field(default_factory=dict)          # what a correction says of the answer that comes next

    def follow(self, event: Event) -> None:
        kind = event["type"]
        if kind == "prompt":
            self.questions.append((ids_of(event["prompt_ids"]), messages_of(event)[-1]["content"]))
        elif kind == "correction":
            self._parents[number_of(event, "node")] = number_of(event, "parent")
        elif kind == "completion":
            node = number_of(event, "node") if "node" in event else len(self._of)
            parent = self._parents.pop(node, None)
            self._of[node] = self._of.get(parent, len(self.questions) - 1) if parent is not None else len(self.questions) - 1
        elif kind == "training" and event["node"] is not None:
            self._of[number_of(event, "node")] = self._of.get(number_of(event, "parent"), len(self.questions) - 1)

    def question(self, node: int) -> tuple[Ids, str]:
        """Prompt ids and text of the question that an answer belongs to. Raises IndexError where none was read."""
        return self.questions[self._of.get(node, len(self.questions) - 1)]


def read_digest(path: Path) -> Digest:
    """The digest of a file, as fast as it can be had: long answers are not read. Raises SessionError where it is no session."""
    return digest(path, store.salvage(path, READ))


def digest(path: Path, salvaged: Salvaged) -> Digest:
    """The digest of what was read of a file. An event that is not as it should be is one more trouble."""
    header, row, roots = salvaged.header, Digest(path), Roots()
    troubles = list(salvaged.troubles)
    anchors: dict[Ids, int] = {}
    first_accepted = ""
    compared: dict[str, bool] = {}
    for line, event in salvaged.events:
        try:
            roots.follow(event)
            match event["type"]:
                case "accept":
                    ids, text = roots.question(number_of(event, "node"))
                    anchors[ids] = len(event["anchors"])
                    first_accepted = first_accepted or text
                case "note" if event.get("what") == "dropped":
                    anchors.pop(ids_of(event["prompt_ids"]), None)
                case "training":
                    row, compared = replace(row, trainings=row.trainings + 1), {}
                case "rerun":
                    compared[str(event["prompt"])] = event["fixed"] is True
                case "scorecard":
                    probes = event.get("probes")
                    row = replace(row, drift=finite(probes["drift_nats"]) if probes else None, probes=int(probes["n"]) if probes else 0)
        except DAMAGE as error:
            troubles.append(Finding(line, damaged(event, error)))
    asked = roots.questions[0][1] if roots.questions else ""
    return replace(row, model=model_name(header), created=header["created"], changed=last_time(header, salvaged.events), prompts=len(roots.questions),
                   prompt=first_accepted or asked, cases=len(anchors), anchors=sum(anchors.values()), compared=len(compared),
                   right=sum(compared.values()), troubles=tuple(troubles))


def model_name(header: Header) -> str:
    """What the file calls its model."""
    name = header["model"].get("id")
    return name if isinstance(name, str) and name else "unknown"


def last_time(header: Header, events: Iterable[tuple[int, Event]]) -> str:
    """When something was written last, as far as it was read."""
    return str([header["created"], *(event["at"] for _, event in events if "at" in event)][-1])


def damaged(event: Event, error: Exception) -> str:
    """What is wrong with an event, in half a sentence."""
    reason = str(error) if isinstance(error, SessionError) else f"{type(error).__name__}: {error}"
    return f"the {event['type']} event is not as it should be ({reason.splitlines()[0][:120] if reason else 'damaged'})"


def messages_of(event: Event) -> tuple[Message, ...]:
    """The conversation of a prompt event. Raises ValueError where it has none."""
    messages: tuple[Message, ...] = tuple({"role": str(one["role"]), "content": str(one["content"])} for one in event["messages"])
    if not messages:
        raise ValueError("no messages")
    return messages


def finite(value: Any) -> float:
    """A figure. Raises ValueError for one that is none."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a figure")
    return number


def number_of(event: Event, key: str) -> int:
    """A number of an answer or an adapter. Raises ValueError."""
    value = event.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a number in {key}")
    return value


def ids_of(value: Any) -> Ids:
    """Token ids. Raises ValueError."""
    if not isinstance(value, list) or not all(type(id_) is int for id_ in value):
        raise ValueError("expected token ids")
    return tuple(value)
