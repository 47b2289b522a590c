"""Where a training stands: what is read of the base once before the loop, and the adapted model beside it after a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.basis import Moments
from lawf_repl.learn.batch import Batch, Pair, make_batch
from lawf_repl.learn.head import Head
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.objective import Target, anchor_kl, marks
from lawf_repl.learn.pool import KEPT_BYTES, Held, Pool
from lawf_repl.learn.reference import Compared, Losses, Reference, compare
from lawf_repl.records import Case

NEAR = 0.05           # a weak preference holds where p is that close to its goal, as a share of it, and
SOFT_KL = 0.02        # its whole distribution that close to the target, in nats: the other tokens keep the base's proportions
END_P = 0.999         # of the token right behind an anchor, which is brought that far where the base is less sure of it


@dataclass
class Prepared:
    """What is fixed before the loop."""

    pairs: list[Pair]    # of the cases
    batch: Batch         # N tokens of the accepted answers, M of them won: anchors, and the ends of what they say
    order: torch.Tensor  # (N,) its tokens, the anchors first, then the ends: what follows is in this order
    reference: Reference  # of the N - M others
    target: Target       # of what is won alone: M tokens
    anchors: int         # how many of those are anchors
    weight: torch.Tensor  # (N - M,) that the objective's value is averaged with, of the others
    must: torch.Tensor   # (N,) positions whose top-1 has to be the accepted token
    pool: Pool           # what may be held
    watch: Pool          # what is only looked at
    moments: Moments
    lower: Lower

    @property
    def anchor_target(self) -> Target:
        """Of the anchors alone."""
        whole, n = self.target, self.anchors
        return Target(whole.ref_logprobs[:n], whole.anchors[:n], whole.chosen[:n], whole.confidence[:n], whole.weight[:n])


class Standing(NamedTuple):
    """What one forward over the accepted answers gave, anchors first."""

    states: torch.Tensor  # (N, H), from which gradients go on
    found: Compared


def prepare(adapter: Adapter, cases: Sequence[Case], replay: Sequence[Pair], watch: Sequence[Pair], settings: Settings) -> Prepared:
    """Read the base before the loop; the adapter is off meanwhile."""
    model = adapter.base
    pairs: list[Pair] = [(case.prompt_ids, case.completion_ids) for case in cases]
    batch = make_batch(pairs, model.device)
    own = {tuple(case.prompt_ids) for case in cases}
    held = [pair for pair in replay if tuple(pair[0]) not in own]  # what is corrected is not held
    seen = held or pairs  # with nothing to hold, their own inputs give the units
    begun = len(adapter.reach.mark) if adapter.reach is not None else None  # tokens of a prompt that it acts on
    moments = Moments(adapter, sum((len(prompt) if begun is None else begun) + len(answer) for prompt, answer in seen), settings.seed)
    lower = Lower(adapter)
    places, chosen, confidence, weight = marks(batch.lengths, [case.anchors for case in cases], model.device)
    run, _ = lower.seen(batch)
    with adapter.off(), torch.no_grad(), nullcontext() if held else moments.reading(lower.acting(run)):
        states = lower.states(run, whole=not held)
    anchors = len(places)
    ends = _ends(batch, lower.head, states, places, confidence == 1)
    places = torch.cat([places, ends])
    chosen, confidence = torch.cat([chosen, batch.targets[ends]]), torch.cat([confidence, confidence.new_ones(len(ends))])
    rest = torch.ones(len(batch.targets), dtype=torch.bool, device=model.device).index_fill(0, places, False).nonzero()[:, 0]
    reference = Reference.of(lower.head, states[rest], 4 * len(rest) * lower.head.vocabulary <= KEPT_BYTES)
    target = Target(Reference(lower.head, states[places]).rows(0, len(places)), torch.arange(len(places), device=model.device), chosen, confidence,
                    weight[places])
    # A sampled token that nobody corrected need not be the most probable, and a weak preference need not win.
    must = torch.cat([target.hard, compare(lower.head, states[rest], reference).top == batch.targets[rest]])
    pool = Pool(adapter, held, lower, moments)
    return Prepared(pairs, batch, torch.cat([places, rest]), reference, target, anchors, weight[rest], must, pool,
                    Pool(adapter, watch, lower), moments, lower)


@torch.no_grad()
def _ends(batch: Batch, head: Head, states: torch.Tensor, anchors: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """Places (E,) right behind one of the `hard` anchors, themselves none, whose token the base finds most probable and is not sure of.

    It says where the corrected word ends. "a dozen" is 12 now, and behind a 12 that it never meant the base has "4" nearly as probable
    as a comma. On the accepted answer that is enough; in a paraphrase it is 124. What the base thinks there is of its own mistake, and no
    reason to hold it.
    """
    row = torch.cat([torch.full((length,), number, device=states.device) for number, length in enumerate(batch.lengths)])
    behind = anchors[hard & (anchors + 1 < len(row))] + 1
    behind = behind[(row[behind] == row[behind - 1]) & ~torch.isin(behind, anchors)]
    if not len(behind):
        return behind
    best = Reference(head, states[behind]).rows(0, len(behind)).max(-1)
    return behind[(best.indices == batch.targets[behind]) & (best.values < math.log(END_P))]


def stand(prepared: Prepared, losses: Losses | None = None, together: Held | None = None) -> Standing:
    """The adapted model beside the base, as the weights are now; with the slopes of KL and of `losses` at the anchors, where they are given.

    `together` is the cases' batch with answers behind it that are held, and the reference of all.
    """
    count = len(prepared.order)
    states = prepared.lower.states(prepared.batch if together is None else together.batch)
    states = torch.cat([states[:count][prepared.order], states[count:]])
    reference = prepared.reference if together is None else together.reference
    return Standing(states, compare(prepared.lower.head, states, reference, losses is not None, len(prepared.target.anchors), losses))


@dataclass
class Reading:
    """Where the anchors stand at one set of weights."""

    anchor_p: torch.Tensor  # (M,) p of the chosen token
    missing: torch.Tensor   # (M,) nats to its goal
    reached: torch.Tensor   # (M,) whether it holds
    wrong: int              # top-1s that have to be the accepted token and are not

    @property
    def fixed(self) -> bool:
        """Whether free greedy generation would give the accepted text."""
        return self.wrong == 0

    @property
    def holds(self) -> bool:
        return self.fixed and bool(self.reached.all())


def read(standing: Standing, prepared: Prepared, settings: Settings) -> Reading:
    """Where the anchors stand."""
    target, logprobs = prepared.anchor_target, standing.found.logprobs
    at = logprobs[target.anchors, target.chosen]  # of the anchors alone
    p = at.exp()
    wrong = int((standing.found.top[:len(prepared.order)] != prepared.batch.targets[prepared.order])[prepared.must].sum())
    if bool(target.hard.all()):
        return Reading(p, -at, p >= settings.target_p, wrong)
    goal = target.anchor_goal
    kl, far = anchor_kl(logprobs, target), (p - goal).abs() / goal
    near = (far <= NEAR) & (kl <= SOFT_KL)
    return Reading(p, torch.where(target.hard, -at, kl), torch.where(target.hard, p >= settings.target_p, near), wrong)
