"""Training an adapter from the anchors of one or more cases, until they hold, and then as little of it as they need.

A generator: it yields a record for each step and prints nothing. The reference is computed once before the loop. When
every anchor is learned with room to spare, the LoRA's scale is cut by bisection to the smallest that still fixes, which
gives back most of what else had moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from lawf_repl.config import Settings
from lawf_repl.engine.memory import memory_guard
from lawf_repl.errors import TrainingError
from lawf_repl.learn.adapter import Adapter, Weights
from lawf_repl.learn.batch import Batch, Pair, completion_logits, make_batch
from lawf_repl.learn.objective import Target, anchor_kl, finite_logprobs, lawf_loss, make_target, token_kl
from lawf_repl.records import Case, StopReason, TrainingResult, TrainStep

Stop = Callable[[], bool]
MARGIN = 0.99         # p that the anchors are trained to before the scale is cut back to --target-p
NEAR = 0.05           # a weak preference holds where p is that close to its goal, as a share of it, and
SOFT_KL = 0.02        # its whole distribution that close to the target, in nats: the other tokens keep the base's proportions
SOFT_MARGIN = 0.5     # share of both that it is trained to
BISECTIONS = 8        # halvings of the scale's interval: to 1/256 of it
PLATEAU_STEPS = 60    # steps in which the weakest anchor must come closer to its goal ...
PLATEAU_SHARE = 0.1   # ... by this share of the log-probability still missing, or training stops


@dataclass
class _Prepared:
    """Batch and target of the cases, and the replay answers with their reference, all fixed before the loop."""

    batch: Batch
    target: Target
    must: torch.Tensor                  # (N,) positions whose top-1 has to be the accepted token
    replay: list[tuple[Batch, torch.Tensor]]  # with ref_logprobs (N, V)


def train(adapter: Adapter, cases: Sequence[Case], replay: Sequence[Pair], settings: Settings,
          stop: Stop = lambda: False) -> Generator[TrainStep, None, TrainingResult]:
    """Train `adapter` on `cases`, holding the base's answers to `replay` prompts; yields each step, returns how it ended.

    Ends when all anchors hold (a hard one at --target-p, a weak preference near its goal) with room to spare and every top-1
    that has to is the accepted token ("converged"), when the farthest anchor comes no closer ("plateau"), at
    settings.max_steps, at settings.max_seconds, or when `stop()` is true; in each case the best weights so far are kept.
    Raises TrainingError without anchors, or where anchors contradict each other.
    """
    check_cases(cases)
    model = adapter.base
    started = time.monotonic()
    with memory_guard("training", "try --rank 2, fewer accepted answers or --device cpu"):
        loop = _Loop(adapter, _prepare(adapter, model, cases, replay, settings), settings, started)
        reason: StopReason = yield from loop.run(stop)
        return loop.finish(reason)


def check_cases(cases: Sequence[Case]) -> None:
    """Raise TrainingError for no cases, a case without anchors that nothing else anchors, or contradicting anchors."""
    if not any(case.anchors for case in cases):
        raise TrainingError("nothing to train: no accepted answer has an anchor; correct a token first, then accept")
    for found in conflicts(cases):
        raise TrainingError(conflict_text(*found))


def conflict_text(first: str, second: str, prompt: str) -> str:
    """A conflict in one line."""
    return (f"two accepted answers ask for different tokens in the same place: {first!r} and {second!r} in the answer to {prompt!r}; "
            "correct one of them again, or take it out with /cases drop")


def conflicts(cases: Sequence[Case]) -> Iterator[tuple[str, str, str]]:
    """(chosen, other token, prompt) for anchors that ask for different tokens in the same context.

    A context is all ids before a position, the prompt's included. Two cases can only share contexts up to the first token
    at which they differ, so that place decides: there one anchor contradicts the other's anchor, or what the other keeps.
    """
    for first, second in combinations(cases, 2):
        one, other = ([*case.prompt_ids, *case.completion_ids] for case in (first, second))
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if place is None:
            continue
        found = [next((a for a in case.anchors if len(case.prompt_ids) + a.position == place), None) for case in (first, second)]
        inside = all(place >= len(case.prompt_ids) for case in (first, second))
        if inside and any(found):
            there = next(anchor for anchor in found if anchor)
            held = there.rejected  # what is no anchor is the base's own choice, which the other's anchor rejects
            yield (found[0].chosen if found[0] else held), (found[1].chosen if found[1] else held), second.prompt


def _prepare(adapter: Adapter, model: Any, cases: Sequence[Case], replay: Sequence[Pair], settings: Settings) -> _Prepared:
    batch = make_batch([(case.prompt_ids, case.completion_ids) for case in cases], model.device)
    size = max(settings.replay_batch, 1)
    ordered = sorted(replay, key=lambda pair: len(pair[0]) + len(pair[1])) if settings.replay_batch else []
    batches = [make_batch(ordered[i:i + size], model.device) for i in range(0, len(ordered), size)]
    with adapter.off(), torch.no_grad():
        reference = finite_logprobs(completion_logits(model, batch))
        held = [(b, finite_logprobs(completion_logits(model, b))) for b in batches]
    target = make_target(reference, batch.lengths, [case.anchors for case in cases])
    # A sampled token that nobody corrected need not be the most probable, and a weak preference need not win.
    must = reference.argmax(-1) == batch.targets
    must[target.anchors] = target.hard
    return _Prepared(batch, target, must, held)


@dataclass
class _Reading:
    """Where the anchors stand at one set of weights."""

    anchor_p: torch.Tensor  # (M,) p of the chosen token
    missing: torch.Tensor   # (M,) nats to its goal
    reached: torch.Tensor   # (M,) whether it holds
    roomy: torch.Tensor     # (M,) whether it would hold with less
    fixed: bool             # every top-1 that has to be is the accepted token

    @property
    def holds(self) -> bool:
        return self.fixed and bool(self.reached.all())

    @property
    def with_room(self) -> bool:
        return self.fixed and bool(self.roomy.all())


class _Loop:
    """The state of one training run."""

    def __init__(self, adapter: Adapter, prepared: _Prepared, settings: Settings, started: float) -> None:
        self.adapter, self.prepared, self.settings, self.started = adapter, prepared, settings, started
        self.shrink = not adapter.from_file  # scaling a loaded adapter would scale away what it had learned before
        self.optimizer = torch.optim.AdamW(adapter.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.optimizer.zero_grad(set_to_none=True)  # a loaded adapter that was trained before still has gradients
        self.goal = prepared.target.anchor_goal  # (M,)
        self.margin = max(MARGIN, 1 - (1 - settings.target_p) / 5)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.steps = 0
        self.loss = float("nan")
        self.best: tuple[tuple[bool, float], Weights] = ((False, -float("inf")), adapter.snapshot())  # what holds beats what is only close
        self.history: list[float] = []  # nats that the farthest anchor is from its goal

    def run(self, stop: Stop) -> Generator[TrainStep, None, StopReason]:
        settings = self.settings
        while True:
            logprobs = self._logprobs()
            reading = self._read(logprobs.detach())
            case_loss = lawf_loss(logprobs, self.prepared.target)
            rank = (reading.holds, -float(reading.missing.max()))
            if rank > self.best[0]:
                self.best = (rank, self.adapter.snapshot())
            self.history.append(float(reading.missing.max()))
            loss, drift = self._backward(case_loss)
            self.loss = loss
            yield TrainStep(self.steps, loss, tuple(reading.anchor_p.tolist()), drift, time.monotonic() - self.started, reading.fixed)
            if reading.with_room:
                return "converged"
            if self._plateau():
                return "converged" if reading.holds else "plateau"
            if stop():
                return "interrupted"
            if self.steps >= settings.max_steps:
                return "max_steps"
            if time.monotonic() - self.started >= settings.max_seconds:
                return "max_seconds"
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.steps += 1

    def finish(self, reason: StopReason) -> TrainingResult:
        """Keep the best weights, cut the scale to what the anchors need, and say how it ended."""
        _, weights = self.best
        self.adapter.restore(weights)
        scale = 1.0
        logprobs = self._frozen_logprobs()
        reading = self._read(logprobs)
        if reading.holds:
            reason = "converged" if reason == "plateau" else reason
            if self.shrink:
                scale = self._smallest_scale(weights)
                self.adapter.restore(weights, scale)
                logprobs = self._frozen_logprobs()
                reading = self._read(logprobs)
        elif reason == "converged":
            reason = "plateau"
        missed = tuple(int(i) for i in (~reading.reached).nonzero()[:, 0])
        loss = float(lawf_loss(logprobs, self.prepared.target))
        return TrainingResult(self.steps, time.monotonic() - self.started, reason, loss, tuple(reading.anchor_p.tolist()), scale, missed)

    def _smallest_scale(self, weights: Weights) -> float:
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self.adapter.restore(weights, middle)
            if self._read(self._frozen_logprobs()).holds:
                high = middle
            else:
                low = middle
        return high

    def _read(self, logprobs: torch.Tensor) -> _Reading:
        """Where the anchors stand, from the adapted model's log-probabilities (N, V)."""
        target = self.prepared.target
        at = logprobs[target.anchors, target.chosen]  # (M,)
        p = at.exp()
        # Whether free greedy generation would give the accepted text: every top-1 that has to is the accepted token.
        fixed = bool((logprobs.argmax(-1) == self.prepared.batch.targets)[self.prepared.must].all())
        if bool(target.hard.all()):
            return _Reading(p, -at, p >= self.settings.target_p, p >= self.margin, fixed)
        kl, far = anchor_kl(logprobs, target), (p - self.goal).abs() / self.goal
        near = (far <= NEAR) & (kl <= SOFT_KL)
        nearer = (far <= NEAR * SOFT_MARGIN) & (kl <= SOFT_KL * SOFT_MARGIN)
        return _Reading(p, torch.where(target.hard, -at, kl), torch.where(target.hard, p >= self.settings.target_p, near),
                        torch.where(target.hard, p >= self.margin, nearer), fixed)

    @torch.no_grad()
    def _frozen_logprobs(self) -> torch.Tensor:
        return self._logprobs()

    def _logprobs(self) -> torch.Tensor:
        return finite_logprobs(completion_logits(self.adapter.base, self.prepared.batch))

    def _backward(self, case_loss: torch.Tensor) -> tuple[float, float | None]:
        """Gradients of cases and one replay batch; (loss, replay drift in nats per token)."""
        case_loss.backward()
        replay = self.prepared.replay
        if not replay:
            return case_loss.item(), None
        batch, reference = replay[int(torch.randint(len(replay), (1,), generator=self.order))]
        held = token_kl(reference, finite_logprobs(completion_logits(self.adapter.base, batch))).mean()
        held.backward()
        return (case_loss + held).item(), held.item()

    def _plateau(self) -> bool:
        history = self.history
        if len(history) <= PLATEAU_STEPS:
            return False
        # best of the last window against the best before it: noise does not count as progress
        before = min(history[:-PLATEAU_STEPS])
        return before - min(history[-PLATEAU_STEPS:]) < PLATEAU_SHARE * before
