"""What it means that a session went as it did before: ties, divergences, and the row in which they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lawf_repl.measure.probes import NEAR_TIE
from lawf_repl.records import Alternative, Anchor, Token

TIE = NEAR_TIE  # difference of two probabilities up to which they count as equal
Where = Literal["prompt", "first answer", "continuation", "anchors", "after training"]
Status = Literal["ok", "diverged", "changed", "error"]  # changed: it diverged, and model or software are others than then
COLUMNS: dict[Where, str] = {"prompt": "before_matches", "first answer": "before_matches", "continuation": "continuations_match",
                             "anchors": "anchors_match", "after training": "after_matches"}


@dataclass(frozen=True)
class Divergence:
    """The first place where it went otherwise. Distributions are those of the next token there, most probable first; `then` is the file's."""

    where: Where
    line: int                               # of the session file
    prompt: str
    position: int | None
    then: str                               # the whole text of the file
    now: str
    then_token: Token | None = None
    now_token: Token | None = None
    note: str = ""


@dataclass(frozen=True)
class Tie:
    """A place where another token was chosen that counts as equal."""

    where: Where
    line: int
    position: int
    then: str
    now: str
    difference: float  # of their probabilities, the smaller of now and then


@dataclass
class Row:
    """What came of one session. None stands for what the file has nothing of."""

    session: str
    status: Status = "ok"
    before_matches: bool | None = None         # first answers
    continuations_match: bool | None = None
    anchors_match: bool | None = None
    after_matches: bool | None = None
    drift_nats: float | None = None            # measured now
    drift_then: float | None = None
    first_divergence: Divergence | None = None
    ties: list[Tie] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)  # what is another than when it was recorded
    notes: list[str] = field(default_factory=list)
    unchecked: list[int] = field(default_factory=list)  # lines whose adapter was never saved
    error: str = ""
    retrained: bool = False
    answers: int = 0                           # that were generated
    seconds: float = 0.0

    def note(self, where: Where, same: bool) -> None:
        """One comparison more in its column."""
        column = COLUMNS[where]
        setattr(self, column, same and getattr(self, column) is not False)

    def diverge(self, found: Divergence) -> None:
        """Only the first place counts: what comes behind it follows from it."""
        if self.first_divergence is None:
            self.first_divergence = found

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def first_difference(then: Sequence[int], now: Sequence[int], start: int) -> int | None:
    """Where two answers part from position `start` on; None where they do not."""
    for at in range(start, max(len(then), len(now))):
        if at >= len(then) or at >= len(now) or then[at] != now[at]:
            return at
    return None


def tie(then: Token, now: Token, sampled: bool) -> float | None:
    """By how much two choices of the most probable token differ in probability, if that is within TIE, now or then; None if it is not.

    Where tokens were sampled, the two distributions have to be the same within TIE.
    """
    if sampled:
        largest = distance(then.alternatives, now.alternatives)
        return largest if largest <= TIE else None
    gaps = [gap(now, then.id)]
    if gap(then, then.id) <= TIE:  # a file in which it was not the most probable contradicts itself
        gaps.append(gap(then, now.id))
    return min(gaps) if min(gaps) <= TIE else None


def gap(token: Token, id_: int) -> float:
    """How much less probable `id_` was than the most probable token, as far as the distribution was kept; else 1."""
    known = {one.id: one.p for one in token.alternatives}
    return max(known.values()) - known[id_] if id_ in known else 1.0


def alike(then: Token, now: Token) -> bool:
    """Whether two distributions behind the same text are the same within TIE."""
    return distance(then.alternatives, now.alternatives) <= TIE


def distance(then: Sequence[Alternative], now: Sequence[Alternative]) -> float:
    """The largest difference in probability of a token that both name; 1 where they name none in common."""
    known = {one.id: one.p for one in now}
    return max((abs(one.p - known[one.id]) for one in then if one.id in known), default=1.0)


def anchor_difference(then: Sequence[Anchor], now: Sequence[Anchor], target_p: float) -> int | None:
    """The first position at which anchors are others than then; None where they are the same within TIE.

    An anchor that one side has alone counts as the same where its probability lies that near to the target.
    """
    old, new = {one.position: one for one in then}, {one.position: one for one in now}
    for position in sorted(old.keys() | new.keys()):
        one, other = old.get(position), new.get(position)
        if one is None or other is None:
            alone = one or other
            assert alone is not None
            if abs(alone.p_ref - target_p) > TIE:
                return position
        elif one.chosen_id != other.chosen_id or abs(one.p_ref - other.p_ref) > TIE or abs(one.confidence - other.confidence) > 1e-6:
            return position
    return None


def anchors_text(anchors: Sequence[Anchor]) -> str:
    return ", ".join(f"{one.position}: {one.rejected!r} to {one.chosen!r} (p {one.p_ref:.3f})" for one in anchors) or "none"


def row_json(row: Row) -> dict[str, Any]:
    """A row of schema lawf.replay/1."""
    found = row.first_divergence
    return {
        "session": row.session, "ok": row.ok, "status": row.status, "before_matches": row.before_matches,
        "continuations_match": row.continuations_match, "anchors_match": row.anchors_match, "after_matches": row.after_matches,
        "drift_nats": row.drift_nats, "drift_then": row.drift_then, "retrained": row.retrained,
        "first_divergence": None if found is None else {
            "where": found.where, "line": found.line, "prompt": found.prompt, "position": found.position, "then": found.then, "now": found.now,
            "note": found.note, "then_token": token_json(found.then_token), "now_token": token_json(found.now_token)},
        "ties": [asdict(one) for one in row.ties], "changed": row.changed, "notes": row.notes, "error": row.error or None,
        "answers": row.answers, "seconds": row.seconds,
    }


def token_json(token: Token | None) -> dict[str, Any] | None:
    """A token with its distribution."""
    if token is None:
        return None
    return {"id": token.id, "text": token.text, "p": token.p, "alternatives": [asdict(one) for one in token.alternatives]}
