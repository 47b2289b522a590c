"""Training an adapter from the anchors of one or more cases: they are brought to hold, and whatever else moves is held.

A generator: it yields a record for each step and prints nothing. The base is read once before the loop, and gives the
directions in which the adapter may move (basis.py). Then rounds: the objective is minimised over B; the base's answers to the
replay prompts are looked at, and those that moved become part of the objective; until none moves any more. Most prompts
never move, so a step costs the corrected answers and the few that do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from lawf_repl.config import Settings
from lawf_repl.engine.memory import give_back, memory_guard
from lawf_repl.engine.threads import side_by_side, workers
from lawf_repl.learn.adapter import Adapter, Weights
from lawf_repl.learn.basis import aim, penalty
from lawf_repl.learn.batch import Pair, make_batch
from lawf_repl.learn.conflicts import check_cases
from lawf_repl.learn.objective import anchor_kl, finite_logprobs, lawf_loss
from lawf_repl.learn.pool import Held
from lawf_repl.learn.reference import Reference, compare
from lawf_repl.learn.solve import Solver
from lawf_repl.learn.standing import END_P, Prepared, Reading, prepare, read, stand
from lawf_repl.records import Case, StopReason, TrainingResult, TrainStep

Stop = Callable[[], bool]
BEYOND = 5            # times nearer to 1 than --target-p, the goal at least
ITERATIONS = 20       # of one round, once everything holds
STILL = 1e-3          # an iteration that lowers the objective by less, in nats, has arrived where everything holds;
PATIENCE = 5          # where something does not, that many in a row: the first steps are short
MOST, AT_MOST = 8, 64  # answers that a round adds to the objective for each case, and for all: thirty cases move more than one does
ROWS = 16             # held answers in one backward pass,
FEW = 3               # and as few where several passes can go side by side
LOOKS = 3             # times as long as a look at the drift took, until the next
BISECTIONS = 8        # halvings of the scale's interval in cut_back: to 1/256 of it


def train(adapter: Adapter, cases: Sequence[Case], replay: Sequence[Pair], settings: Settings,
          stop: Stop = lambda: False, watch: Sequence[Pair] = (), started: float | None = None,
          hold: Sequence[Pair] = (), way: type[Loop] | None = None) -> Generator[TrainStep, None, TrainingResult]:
    """Train `adapter` on `cases`, holding the base's answers to `replay` prompts; yields each step, returns how it ended.

    The drift of a step is that of the `watch` prompts, which nothing is trained on. Time counts from `started`, where something
    was prepared before. Answers to `hold` prompts are part of the objective from the start, not only once they moved. Ends when
    all anchors hold (a hard one at --target-p, a weak preference near its goal), every top-1 that has to is the accepted token
    and no replay answer moved ("converged"), when the objective falls no further without that ("plateau"), at settings.max_steps, at
    settings.max_seconds, or when `stop()` is true; in each case the best weights so far are kept. `way` is another way to
    minimise, for a comparison.
    Raises TrainingError without anchors, or where anchors contradict each other.
    """
    check_cases(cases)
    started = time.monotonic() if started is None else started
    with memory_guard("training", "try --rank 2, fewer accepted answers or --device cpu", sizes=True):
        loop = (way or Loop)(adapter, prepare(adapter, cases, [*replay, *hold], watch, settings), settings, started)
        loop.hold(hold)
        reason: StopReason = yield from loop.run(stop)
        return loop.finish(reason)


class _Look(NamedTuple):
    """What the probes that are shown said last."""

    drift: float | None
    again: float  # when they may be asked again, by the monotonic clock


class Loop:
    """The state of one training run. What the bench compares with overrides a method each: `solver`, `aim`, `anchor_losses`."""

    iterations = ITERATIONS

    def __init__(self, adapter: Adapter, prepared: Prepared, settings: Settings, started: float) -> None:
        self.adapter, self.prepared, self.settings, self.started = adapter, prepared, settings, started
        everything = adapter.parameters()
        goal = max(settings.goal_p, 1 - (1 - settings.target_p) / BEYOND)  # a goal below the target would end short of it
        ends = len(prepared.target.anchors) - prepared.anchors
        self.goal_odds = torch.tensor([_odds(goal)] * prepared.anchors + [_odds(END_P)] * ends, device=prepared.batch.ids.device)  # (M,)
        if adapter.from_file:  # its directions carry what it has learned before, and its numbers have units of their own
            self.trained, self.pull = everything, 0.0
        else:
            self.trained, self.pull = adapter.outward(), settings.pull
            self._learn_trained()
            prepared.lower.in_room(self.aim)
            prepared.moments.forget()
        give_back()
        self.most = workers(adapter.base)
        self.start = [parameter.detach().clone() for parameter in self.trained]
        self.cases = len(prepared.batch.lengths)
        self.active: list[int] = []
        self.held: list[Held] = []
        self.looked: _Look | None = None
        self.together: Held | None = None  # the cases and the first batch of what is held
        self.steps, self.round = 0, 1
        self.best: tuple[tuple[bool, int, float], Weights] | None = None

    def _learn_trained(self) -> None:
        """What is not trained needs no inputs kept for it."""
        for parameter in self.adapter.parameters():
            parameter.requires_grad_(any(parameter is one for one in self.trained))

    def hold(self, pairs: Sequence[Pair]) -> None:
        """Make these answers of the pool part of the objective."""
        prompts = {tuple(prompt) for prompt, _ in pairs}
        self.active = [i for i, (prompt, _) in enumerate(self.prepared.pool.pairs) if tuple(prompt) in prompts]
        self._hold_active()

    def run(self, stop: Stop) -> Generator[TrainStep, None, StopReason]:
        settings, rounds = self.settings, self.settings.rounds
        while True:
            solver = self.solver()
            loss, reading = solver.here()
            iterations = still = 0
            while True:
                yield self._step(loss, reading)
                if stop():
                    return "interrupted"
                if self.steps >= settings.max_steps:
                    return "max_steps"
                if time.monotonic() - self.started >= settings.max_seconds:
                    return "max_seconds"
                before = loss
                loss, reading = solver.step()
                self.steps, iterations = self.steps + 1, iterations + 1
                still = still + 1 if before - loss < STILL else 0
                if (still or iterations >= self.iterations) if reading.holds else still >= PATIENCE:
                    break
            self._keep(reading)
            ended: StopReason | None = None
            if not reading.holds:
                ended = None if self._loosen() else "plateau"
            elif rounds <= 1 or not self._hold_more():
                ended = "converged"
            if ended:
                yield self._step(loss, reading, last=True)
                return ended
            rounds -= 1
            self.round += 1

    def finish(self, reason: StopReason) -> TrainingResult:
        """Put the best weights in place and say how it ended."""
        if self.best:
            self.adapter.restore(self.best[1])
        with torch.no_grad():
            standing = stand(self.prepared)
        reading = read(standing, self.prepared, self.settings)
        if reason == "converged" and not reading.holds:
            reason = "plateau"
        missed = tuple(int(i) for i in (~reading.reached).nonzero()[:, 0])
        ready = self.prepared
        loss = float((standing.found.kl * ready.weight).sum() + lawf_loss(standing.found.logprobs, ready.target))
        return TrainingResult(self.steps, time.monotonic() - self.started, reason, loss, tuple(reading.anchor_p.tolist()), 1.0, missed)

    def _step(self, loss: float, reading: Reading, last: bool = False) -> TrainStep:
        self._keep(reading)
        p, drift = tuple(reading.anchor_p.tolist()), self._watched(last)
        return TrainStep(self.steps, loss, p, drift, time.monotonic() - self.started, reading.fixed, self.round)

    def _watched(self, last: bool) -> float | None:
        """Drift on what is only looked at: now, or as it was a moment ago where looking at every step would take most of the time."""
        began = time.monotonic()
        if last or self.looked is None or began >= self.looked.again:
            drift = self.prepared.watch.drift()
            took = time.monotonic() - began
            self.looked = _Look(drift, began + took + LOOKS * took)
        return self.looked.drift

    def _keep(self, reading: Reading) -> None:
        """Remember the weights: of two that hold the later ones, which move less besides; else what breaks least, then what is closest."""
        rank = (True, 0, 0.0) if reading.holds else (False, -reading.wrong, -float(reading.missing.max()))
        if self.best is None or rank >= self.best[0]:
            self.best = (rank, self.adapter.snapshot())

    def _loosen(self) -> bool:
        """Give an adapter that did not reach the anchors more freedom: no pull, then its directions too; False where it has both."""
        everything = self.adapter.parameters()
        if self.pull:
            self.pull = 0.0
            self._learn_trained()
        elif len(self.trained) < len(everything):
            self.trained = everything
            self.start = [parameter.detach().clone() for parameter in everything]
        else:
            return False
        return True

    def _hold_more(self) -> bool:
        """Add the replay answers that moved most to the objective; False where none did."""
        moved = self.prepared.pool.moved()
        worst = sorted(range(len(moved)), key=lambda i: -moved[i])
        more = [i for i in worst if moved[i] > self.settings.hold and i not in self.active][:min(MOST * self.cases, AT_MOST)]
        self.active += more
        self._hold_active()
        return bool(more)

    def _hold_active(self) -> None:
        """Make the batches of what is held. The first goes through the model with the cases where both are small: a pass costs more than its rows."""
        ready = self.prepared
        for gone in [*self.held, *([] if self.together is None else [self.together])]:
            ready.lower.forget(gone.batch)
        rows = ROWS if self.most == 1 else min(ROWS, max(FEW, math.ceil(len(self.active) / self.most)))
        self.held, self.together = ready.pool.members(self.active, rows), None
        if self.held and len(ready.pairs) <= ROWS and ready.pool.fits(pairs := (*ready.pairs, *self.held[0].pairs)):
            self.together = Held(pairs, make_batch(pairs, ready.batch.ids.device), Reference.joined([ready.reference, self.held[0].reference]))

    def _evaluate(self) -> tuple[float, Sequence[torch.Tensor], Reading]:
        """The objective where the weights stand, its gradients, and where the anchors stand."""
        ready = self.prepared
        rest = self.held if self.together is None else self.held[1:]
        standing = None

        def cases() -> tuple[float, list[torch.Tensor]]:
            nonlocal standing
            standing = stand(ready, self.anchor_losses, self.together)
            return standing.found.loss, self._behind(standing.states, standing.found.slope)

        def kept(held: Held) -> tuple[float, list[torch.Tensor]]:
            states = ready.lower.states(held.batch)
            found = compare(ready.lower.head, states, held.reference, slope=True)
            return found.loss, self._behind(states, found.slope)

        apart = self.most > 1 and bool(rest) and ready.lower.apart([(self.together or ready).batch, *(held.batch for held in rest)])
        work: list[Callable[[], tuple[float, list[torch.Tensor]]]] = [cases, *(partial(kept, held) for held in rest)]
        parts = side_by_side(work, self.most if apart else 1)
        # Summed, not averaged: in a long answer an anchor weighs as much as in a short one.
        total = math.fsum(loss for loss, _ in parts)
        gradients = [torch.stack(some).sum(0) if len(some) > 1 else some[0] for some in zip(*(found for _, found in parts), strict=True)]
        assert standing is not None
        if self.pull:
            pulled, slopes = penalty(self.trained, self.start, self.pull)
            total += pulled
            gradients = [known + slope for known, slope in zip(gradients, slopes, strict=True)]
        return total, gradients, read(standing, ready, self.settings)

    def _behind(self, states: torch.Tensor, slope: torch.Tensor | None) -> list[torch.Tensor]:
        """Gradients of what is trained from those of the final states (N, H)."""
        found = torch.autograd.grad(states, self.trained, slope, allow_unused=True)
        return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(self.trained, found, strict=True)]

    def anchor_losses(self, logprobs: torch.Tensor) -> torch.Tensor:
        """What is lowered at each anchor and end (M,), from logprobs there (M, V): a hard one wants its odds, a weak one its distribution."""
        target = self.prepared.target
        at = logprobs[target.anchors, target.chosen]  # (M,)
        others = logprobs[target.anchors].scatter(1, target.chosen[:, None], -math.inf).logsumexp(-1)
        odds = at - others  # of p itself float32 knows nothing any more so near to 1
        # Nothing is asked beyond the goal, which is approached as steeply as ever: where it fades out instead, weights settle that are smaller at
        # the same odds and carry over to fewer paraphrases.
        missing = (self.goal_odds - odds).clamp(min=0)
        return torch.where(target.hard, torch.nn.functional.softplus(missing), anchor_kl(logprobs, target))

    def aim(self) -> None:
        """Give the adapter its directions."""
        aim(self.adapter, self.prepared.moments, self._anchor_loss, self.settings.seed)

    def solver(self) -> Solver[Reading]:
        """What minimises the objective of one round."""
        return Solver(self.trained, lambda: self.prepared.lower.in_room(self._evaluate))

    def _anchor_loss(self) -> torch.Tensor:
        ready = self.prepared
        states = ready.lower.states(ready.batch)[ready.order[:len(ready.target.anchors)]]
        return anchor_kl(finite_logprobs(ready.lower.head.logits(states)), ready.target).sum()


def _odds(p: float) -> float:
    return math.log(p / (1 - p))


@torch.no_grad()
def cut_back(adapter: Adapter, cases: Sequence[Case], settings: Settings) -> tuple[float, ...]:
    """Shrink the LoRA to the smallest scale at which the cases still hold, by bisection; returns p of the anchors there.

    Training does not: a fix that only just holds seldom reaches the prompt's paraphrases.
    """
    prepared = prepare(adapter, cases, (), (), settings)
    weights = adapter.snapshot()

    def reading(scale: float) -> Reading:
        adapter.restore(weights, scale)
        return read(stand(prepared), prepared, settings)

    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reading(middle).holds else (middle, high)
    return tuple(reading(high).anchor_p.tolist())
