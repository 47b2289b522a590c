"""Drift: how far the adapted model moved on prompts that have nothing to do with the correction.

One forward a probe along the base's own greedy answer gives both figures exactly: the mean KL(base || adapted) there, and
whether the greedy text changed, which it did if and only if a top-1 changed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.engine.memory import memory_guard
from lawf_repl.errors import Stopped, UsageError
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Batch, Pair, completion_logits, make_batch
from lawf_repl.learn.head import Head
from lawf_repl.learn.reference import chunks, divergence, normalized
from lawf_repl.records import ProbeResult

Looked = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # at n tokens: KL in nats, whether the base was undecided, whether the top-1 changed
NEAR_TIE = 0.02      # the base's top two probabilities this close: a change of top-1 is no change of mind
ROWS = 32            # probes a forward pass
ANSWER_TOKENS = 96   # of a probe's base answer at most


@dataclass(frozen=True)
class ProbeSet:
    """Prompts with the base's own greedy answers, as ids: probes to measure on, replay prompts to hold. Disjoint."""

    probes: tuple[Pair, ...] = ()
    replay: tuple[Pair, ...] = ()


def base_answers(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int = ANSWER_TOKENS) -> list[list[int]]:
    """Greedy answers of the model as it stands (turn the adapter off first)."""
    return greedy_answers(engine.model, prompts, engine.end_ids, max_tokens, context=engine.context_length,
                          kind=engine.cache_kind)


class Reference:
    """Probes with the base's log-probabilities kept, for measuring many adapters: (N, V) floats for all probes stay in memory."""

    def __init__(self, engine: Engine, probes: Sequence[Pair]) -> None:
        """The model must be as it is without an adapter. Raises UsageError for no probes."""
        self.engine, self.count = engine, len(probes)
        with torch.no_grad():
            self._kept = [(batch, normalized(completion_logits(engine.model, batch).float())) for batch in _batches(engine, probes)]

    @torch.no_grad()
    def measure(self) -> ProbeResult:
        """As measure_drift up to rounding, of the model as it stands now."""
        now = ((batch, base, completion_logits(self.engine.model, batch).float()) for batch, base in self._kept)
        return _result((_changes(batch, *_looked(base, logits)) for batch, base, logits in now), self.count)


@torch.no_grad()
def measure_drift(engine: Engine, adapter: Adapter, probes: Sequence[Pair], stop: Callable[[], bool] = lambda: False) -> ProbeResult:
    """Mean KL(base || adapted) per token in nats, and the share of probes whose greedy text changed.

    Changes at a near-tie of the base are counted apart. Raises UsageError for no probes, Stopped where `stop()` turns true.
    """
    def changes() -> Iterator[_Changes]:
        for batch in _batches(engine, probes):
            if stop():
                raise Stopped
            with memory_guard("measuring drift", "take fewer probes"):
                with adapter.off():
                    base = head.states(batch)  # (N, H)
                states = head.states(batch)
                found = [_against(head, base[start:stop], states[start:stop]) for start, stop in chunks(len(states), head.vocabulary)]
            yield _changes(batch, *(torch.cat(column) for column in zip(*found, strict=True)))

    head = Head(adapter)
    return _result(changes(), len(probes))


class _Changes(NamedTuple):
    """What changed in one batch of probes."""

    kl: float      # summed over the tokens, nats
    tokens: int
    flipped: int   # probes whose greedy text changed
    tied: int      # those where the base itself was undecided


def _batches(engine: Engine, probes: Sequence[Pair]) -> Iterator[Batch]:
    if not probes:
        raise UsageError("no probes to measure drift on")
    ordered = sorted(probes, key=lambda pair: len(pair[0]) + len(pair[1]))
    for start in range(0, len(ordered), ROWS):
        yield make_batch(ordered[start:start + ROWS], engine.device)


def _looked(base: torch.Tensor, logits: torch.Tensor) -> Looked:
    """What is found from the base's log-probabilities and the adapted model's logits (n, V), which are written over."""
    top = base.topk(2, dim=-1)
    near = top.values[:, 0].exp() - top.values[:, 1].exp() <= NEAR_TIE
    changed = logits.argmax(-1) != top.indices[:, 0]
    return divergence(logits, base), near, changed


def _against(head: Head, base: torch.Tensor, adapted: torch.Tensor) -> Looked:
    """As `_looked`, from final states (n, H) of both."""
    return _looked(normalized(head.free(base)[0]), head.free(adapted)[0])


def _changes(batch: Batch, kl: torch.Tensor, near: torch.Tensor, changed: torch.Tensor) -> _Changes:
    """What changed in a batch, from what was found at each of its tokens (N,)."""
    flipped = tied = 0
    for row_changed, row_near in zip(batch.split(changed), batch.split(near), strict=True):
        if bool(row_changed.any()):
            # the first change decides: behind it the two texts are different anyway
            if bool(row_near[int(row_changed.int().argmax())]):
                tied += 1
            else:
                flipped += 1
    return _Changes(float(kl.sum()), len(batch.targets), flipped, tied)


def _result(changes: Iterable[_Changes], count: int) -> ProbeResult:
    kl, tokens, flipped, tied = (sum(column) for column in zip(*changes, strict=True))
    return ProbeResult(count, kl / tokens, flipped / count, tied / count)
