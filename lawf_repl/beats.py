"""What can happen in a session, as the parts of its story: each with its line of the file and its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lawf_repl.records import Anchor, Correction, Message, Node, Rerun, Scorecard, TrainingResult, TrainStep


@dataclass(frozen=True)
class Beat:
    """Something that happened: in which line of the file, and when."""

    line: int
    at: str


@dataclass(frozen=True)
class Asked(Beat):
    """A question. `messages` are those that no beat before has shown: one where a conversation goes on, else all."""

    messages: tuple[Message, ...]
    turn: int                       # which question of its conversation, from 1


@dataclass(frozen=True)
class Answered(Beat):
    """An answer that nobody corrected yet."""

    node: Node


@dataclass(frozen=True)
class Corrected(Beat):
    """A correction, what stood before, and the answer that came of it; one of the two is None where it is lost."""

    correction: Correction
    before: Node | None
    after: Node | None


@dataclass(frozen=True)
class Moved(Beat):
    """The user went to an answer that was there already."""

    node: int
    text: str | None


@dataclass(frozen=True)
class Accepted(Beat):
    """An answer was found right: these tokens of it are anchors."""

    prompt: str
    text: str
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True)
class Listed(Beat):
    """Prompts that were named for something, one after the other."""

    what: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Noted(Beat):
    """A remark."""

    text: str


@dataclass(frozen=True)
class Trained(Beat):
    """A training on the anchors of all accepted answers."""

    result: TrainingResult
    anchors: tuple[Anchor, ...]   # in the order of the result's figures
    prompts: int
    recipe: dict[str, Any]
    steps: tuple[TrainStep, ...]  # some of them, in their order; none where the file does not have the course


@dataclass(frozen=True)
class Compared(Beat):
    """A prompt before and after. `whole` says whether the answers are there as tokens; else their words stand for them."""

    rerun: Rerun
    whole: bool


@dataclass(frozen=True)
class Measured(Beat):
    """A scorecard, of so many prompts."""

    card: Scorecard
    reruns: tuple[Rerun, ...]


@dataclass(frozen=True)
class Kept(Beat):
    """An adapter on the disk; `folder` is None where it is not there any more, or not with this content."""

    path: str
    sha256: str
    folder: str | None
    loaded: bool                  # the session began with it


@dataclass(frozen=True)
class Exported(Beat):
    """An export, and whether the software that it is for gave the accepted answers."""

    format: str
    path: str
    passed: bool


@dataclass(frozen=True)
class Lost(Beat):
    """A line that says nothing any more."""

    text: str
