"""Training an adapter from the anchors of one or more cases, until they hold, and then as little of it as they need.

A generator: it yields a record for each step and prints nothing. The reference is computed once before the loop. When
every anchor is learned with room to spare, the LoRA's scale is cut by bisection to the smallest that still fixes, which
gives back most of what else had moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lawf_repl.config import Settings
from lawf_repl.engine.memory import memory_guard
from lawf_repl.errors import TrainingError
from lawf_repl.learn.adapter import Adapter, Weights
from lawf_repl.learn.batch import Batch, Pair, completion_logits, make_batch
from lawf_repl.learn.objective import Target, lawf_loss, make_target, token_kl
from lawf_repl.records import Case, StopReason, TrainingResult, TrainStep

Stop = Callable[[], bool]
MARGIN = 0.99         # p that the anchors are trained to before the scale is cut back to --target-p
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

    Ends when all anchors reach their goal and every top-1 is the accepted token ("converged"), when the weakest anchor
    stops rising ("plateau"), at settings.max_steps, at settings.max_seconds, or when `stop()` is true; in each case the
    best weights so far are kept. Raises TrainingError without anchors, or where anchors contradict each other.
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
    for first, second, text in conflicts(cases):
        raise TrainingError(f"two accepted answers ask for different tokens in the same place: {first!r} and {second!r} in the answer to "
                            f"{text!r}; correct one of them again")


def conflicts(cases: Sequence[Case]) -> Iterator[tuple[str, str, str]]:
    """(chosen, other chosen, prompt) for anchors that ask for different tokens in the same context."""
    wanted: dict[tuple[int, ...], tuple[int, str]] = {}
    for case in cases:
        for anchor in case.anchors:
            context = (*case.prompt_ids, *case.completion_ids[:anchor.position])
            known = wanted.setdefault(context, (anchor.chosen_id, anchor.chosen))
            if known[0] != anchor.chosen_id:
                yield known[1], anchor.chosen, case.prompt


def _prepare(adapter: Adapter, model: Any, cases: Sequence[Case], replay: Sequence[Pair], settings: Settings) -> _Prepared:
    batch = make_batch([(case.prompt_ids, case.completion_ids) for case in cases], model.device)
    size = max(settings.replay_batch, 1)
    ordered = sorted(replay, key=lambda pair: len(pair[0]) + len(pair[1])) if settings.replay_batch else []
    batches = [make_batch(ordered[i:i + size], model.device) for i in range(0, len(ordered), size)]
    with adapter.off(), torch.no_grad():
        reference = torch.log_softmax(completion_logits(model, batch).float(), -1)
        held = [(b, torch.log_softmax(completion_logits(model, b).float(), -1)) for b in batches]
    target = make_target(reference, batch.lengths, [case.anchors for case in cases])
    # A sampled token that nobody corrected need not be the most probable, and a weak preference need not win.
    must = reference.argmax(-1) == batch.targets
    must[target.anchors] = target.confidence == 1
    return _Prepared(batch, target, must, held)


class _Loop:
    """The state of one training run."""

    def __init__(self, adapter: Adapter, prepared: _Prepared, settings: Settings, started: float) -> None:
        self.adapter, self.prepared, self.settings, self.started = adapter, prepared, settings, started
        self.shrink = not adapter.from_file  # scaling a loaded adapter would scale away what it had learned before
        self.optimizer = torch.optim.AdamW(adapter.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.optimizer.zero_grad(set_to_none=True)  # a loaded adapter that was trained before still has gradients
        self.goal = prepared.target.anchor_goal  # (M,)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.steps = 0
        self.loss = float("nan")
        self.best: tuple[tuple[bool, float], Weights] = ((False, -1.0), adapter.snapshot())  # what holds beats what is only strong
        self.history: list[float] = []  # log p of the weakest anchor, relative to its goal

    def run(self, stop: Stop) -> Generator[TrainStep, None, StopReason]:
        settings = self.settings
        while True:
            logprobs = self._logprobs()
            target = self.prepared.target
            anchor_p = logprobs.detach()[target.anchors, target.chosen].exp()  # (M,)
            fixed = self._fixed(logprobs.detach())
            case_loss = lawf_loss(logprobs, target)
            weakest = float((anchor_p / self.goal).min())
            rank = (weakest >= settings.target_p and fixed, weakest)
            if rank > self.best[0]:
                self.best = (rank, self.adapter.snapshot())
            self.history.append(float((anchor_p / self.goal).clamp_min(1e-12).log().min()))
            loss, drift = self._backward(case_loss)
            self.loss = loss
            yield TrainStep(self.steps, loss, tuple(anchor_p.tolist()), drift, time.monotonic() - self.started, fixed)
            margin = 1 - (1 - settings.target_p) / 5 if settings.target_p > 0.95 else MARGIN
            if weakest >= margin and fixed:
                return "converged"
            if self._plateau():
                return "converged" if weakest >= settings.target_p and fixed else "plateau"
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
        settings, target = self.settings, self.prepared.target
        _, weights = self.best
        self.adapter.restore(weights)
        scale = 1.0
        anchor_p, fixed = self._read()
        if self._holds(anchor_p, fixed):
            reason = "converged" if reason == "plateau" else reason
            if self.shrink:
                scale = self._smallest_scale(weights)
                self.adapter.restore(weights, scale)
                anchor_p, fixed = self._read()
        elif reason == "converged":
            reason = "plateau"
        missed = tuple(i for i, (p, goal) in enumerate(zip(anchor_p.tolist(), self.goal.tolist(), strict=True)) if p < settings.target_p * goal)
        with torch.no_grad():
            loss = float(lawf_loss(self._logprobs(), target))
        return TrainingResult(self.steps, time.monotonic() - self.started, reason, loss, tuple(anchor_p.tolist()), scale, missed)

    def _smallest_scale(self, weights: Weights) -> float:
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self.adapter.restore(weights, middle)
            if self._holds(*self._read()):
                high = middle
            else:
                low = middle
        return high

    def _holds(self, anchor_p: torch.Tensor, fixed: bool) -> bool:
        return bool((anchor_p >= self.settings.target_p * self.goal).all()) and fixed

    def _fixed(self, logprobs: torch.Tensor) -> bool:
        """Whether free greedy generation would give the accepted text: every top-1 that has to is the accepted token."""
        return bool((logprobs.argmax(-1) == self.prepared.batch.targets)[self.prepared.must].all())

    @torch.no_grad()
    def _read(self) -> tuple[torch.Tensor, bool]:
        logprobs = self._logprobs()
        target = self.prepared.target
        return logprobs[target.anchors, target.chosen].exp(), self._fixed(logprobs)

    def _logprobs(self) -> torch.Tensor:
        return torch.log_softmax(completion_logits(self.adapter.base, self.prepared.batch).float(), -1)

    def _backward(self, case_loss: torch.Tensor) -> tuple[float, float | None]:
        """Gradients of cases and one replay batch; (loss, replay drift in nats per token)."""
        case_loss.backward()
        replay = self.prepared.replay
        if not replay:
            return case_loss.item(), None
        batch, reference = replay[int(torch.randint(len(replay), (1,), generator=self.order))]
        held = token_kl(reference, torch.log_softmax(completion_logits(self.adapter.base, batch).float(), -1)).mean()
        held.backward()
        return (case_loss + held).item(), held.item()

    def _plateau(self) -> bool:
        history = self.history
        if len(history) <= PLATEAU_STEPS:
            return False
        # best of the last window against the best before it: noise does not count as progress
        before = max(history[:-PLATEAU_STEPS])
        return max(history[-PLATEAU_STEPS:]) - before < PLATEAU_SHARE * -before
