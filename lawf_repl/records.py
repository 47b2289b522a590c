"""The values that everything else passes around: immutable, without behaviour beyond what follows from their fields.

Ids are vocabulary indices, positions count completion tokens from 0, probabilities lie in [0, 1], times are in seconds,
divergences and losses in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["eos", "length", "interrupted"]
ReuseKind = Literal["new", "kept", "cut", "snapshot", "recomputed"]
CorrectionKind = Literal["replace", "delete", "end", "go_on"]
StopReason = Literal["converged", "plateau", "max_steps", "max_seconds", "interrupted"]
Message = dict[str, str]  # role and content


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood at a position."""

    id: int
    text: str    # 0xe58c for one that is only part of a character: its bytes
    p: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a completion, with the untempered distribution it was taken from.

    The texts of a completion's tokens join to its text. A token that ends inside a UTF-8 character is `partial` and has
    text "": the token that completes the character, or shows that it is broken, carries it.
    """

    id: int
    text: str
    p: float                                    # exp(logprob) of this token
    rank: int                                   # 0: no token was more probable
    entropy: float                              # of the whole distribution, nats
    alternatives: tuple[Alternative, ...] = ()  # most probable first, this token among them if it is
    special: bool = False                       # an end-of-turn or other special token
    partial: bool = False                       # ends inside a character that the next token goes on with


@dataclass(frozen=True, slots=True)
class Reuse:
    """What became of the cached states when a generation began."""

    how: ReuseKind   # nothing was cached, all of it stayed, it was cut, an earlier snapshot was restored, it was computed again
    kept: int        # tokens whose states were reused
    read: int        # tokens of prompt and prefix that were read, with the fix


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one generation went."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer as tokens; the end-of-turn token is one of them where it was reached."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    finish: Finish
    timing: Timing = field(default=Timing(), compare=False)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def text(self) -> str:
        """The text without the end-of-turn token."""
        tokens = self.tokens[:-1] if self.finish == "eos" else self.tokens
        return "".join(token.text for token in tokens)


@dataclass(frozen=True, slots=True)
class Correction:
    """One act of the user. `position` is where the ids first differ, after tokens that the fix repeats were kept."""

    kind: CorrectionKind
    position: int
    text: str                    # typed text; "" for delete and end
    ids: tuple[int, ...]         # ids put at `position`
    removed_ids: tuple[int, ...] # ids that stood from `position` on


@dataclass(frozen=True, slots=True)
class Anchor:
    """A completion position that is trained toward a token."""

    position: int
    rejected_id: int     # what the base prefers here, or what was corrected away
    chosen_id: int
    rejected: str        # texts, or 0xe58c for a token that is only part of a character
    chosen: str
    confidence: float    # c: 1 is a hard correction, less a weak preference
    p_ref: float         # the frozen base's probability of the chosen token

    @property
    def goal(self) -> float:
        """What training brings the chosen token's probability to: c, and of the rest the share that the base gives it."""
        return self.confidence + (1 - self.confidence) * self.p_ref


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt with its accepted completion: what training needs to know."""

    prompt: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    anchors: tuple[Anchor, ...]
    accepted: str = ""                 # text of the completion, the end-of-turn token left out


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something has come that takes a while: `done` of `of`."""

    what: str
    done: int
    of: int
    unit: str = ""   # B: bytes


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One optimiser step, measured before the step was taken."""

    step: int
    loss: float
    anchor_p: tuple[float, ...]   # p of the chosen token, all anchors of all cases in order
    drift: float | None           # mean KL(base || adapted) per token on a few probes, at most a few steps old; None without any
    seconds: float                # since training began
    fixed: bool                   # every position's top-1 is the accepted token
    round: int = 1                # which look at the replay answers this step comes after


@dataclass(frozen=True, slots=True)
class Curve:
    """The course of a training at some of its steps: columns of the same length, with the meaning of TrainStep's fields."""

    step: tuple[int, ...]
    loss: tuple[float, ...]
    anchor_p: tuple[tuple[float, ...], ...]  # a column for each anchor
    drift: tuple[float | None, ...]
    seconds: tuple[float, ...]
    fixed: tuple[bool, ...]
    round: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a training ended."""

    steps: int
    seconds: float
    stop_reason: StopReason
    loss: float
    anchor_p: tuple[float, ...]        # after scaling
    scale: float                       # what the finished LoRA was multiplied by
    unreachable: tuple[int, ...] = ()  # indices of anchors that did not reach the target


@dataclass(frozen=True, slots=True)
class Node:
    """One state of an answer in the tree of answers, corrections and trainings. Never changed: undo, redo and goto move between them."""

    id: int
    parent: int | None
    completion: Completion
    correction: Correction | None = None             # what led here; None for a first answer and for a training
    training: TrainingResult | None = None           # what led here, if it was a training: the answer is the parent's
    adapter: int = 0                                 # which of the session's adapters stood then; 0 is what it began with
    adapter_on: bool = False                         # whether it was on
    confidence: float = 1.0                          # c of the anchors that this node's fix and continuation make
    fix_positions: frozenset[int] = frozenset()      # positions that fixes have set so far, still part of the answer
    adapted_positions: frozenset[int] = frozenset()  # positions that the adapted model generated
    adapted: bool = False                            # some token's statistics are the adapted model's, not the base's


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Drift over a set of probes."""

    n: int
    drift_nats: float
    flips: float       # share of probes whose greedy text changed, near-ties of the base left out
    near_ties: float   # share that changed at a near-tie of the base


@dataclass(frozen=True, slots=True)
class Check:
    """A paraphrase or neighbour: what was expected and what the adapted model gave."""

    prompt: str
    expected: str
    got: str

    @property
    def ok(self) -> bool:
        return self.expected == self.got


@dataclass(frozen=True, slots=True)
class Scorecard:
    """What the adapter did: None or empty means not measured."""

    reliability: float | None = None          # share of trained prompts that give the accepted text in free generation
    paraphrases: tuple[Check, ...] = ()
    neighbours: tuple[Check, ...] = ()
    probes: ProbeResult | None = None


@dataclass(frozen=True, slots=True)
class Rerun:
    """The same prompt before and after training."""

    prompt: str
    before: Completion          # adapter off, generated again
    accepted: str
    after: Completion           # adapter on, free greedy generation
    before_matches: bool        # the adapter-off answer is the stored one, id for id

    @property
    def fixed(self) -> bool:
        return self.after.text == self.accepted and self.after.finish != "interrupted"
