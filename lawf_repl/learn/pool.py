"""Answers of the base that training is to leave as they are, measured against a kept reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.basis import Moments
from lawf_repl.learn.batch import Batch, Pair, make_batch
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.objective import finite_logprobs, token_kl

ROWS = 32                 # answers a forward pass
KEPT_BYTES = 2**30        # of references in all; where the vocabulary is so large that they need more, they are computed again


@dataclass(frozen=True)
class Held:
    """One batch of answers with the base's distributions."""

    batch: Batch
    reference: torch.Tensor  # ref_logprobs (N, V)


class Pool:
    """Prompts with the base's own answers. The adapter is off while it is made."""

    def __init__(self, adapter: Adapter, pairs: Sequence[Pair], lower: Lower, moments: Moments | None = None) -> None:
        self._adapter, self._model, self._lower = adapter, adapter.base, lower
        self.pairs = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        self.tokens = sum(len(answer) for _, answer in self.pairs)
        self._batches = [make_batch(self.pairs[i:i + ROWS], self._model.device) for i in range(0, len(self.pairs), ROWS)]
        self._kept: list[torch.Tensor | None] = []
        left = KEPT_BYTES
        with adapter.off(), torch.no_grad():
            for batch in self._batches:
                with moments.reading(batch.mask) if moments else nullcontext():
                    reference = finite_logprobs(self._lower.logits(batch))
                left -= reference.nbytes
                self._kept.append(reference if left >= 0 else None)

    @torch.no_grad()
    def moved(self) -> list[float]:
        """KL(base || adapted) of each answer, summed over its tokens, in nats; in the order of `pairs`."""
        out: list[float] = []
        for number, batch in enumerate(self._batches):
            kl = token_kl(self._reference(number), finite_logprobs(self._lower.logits(batch)))
            out += [float(row.sum()) for row in batch.split(kl)]
        return out

    def drift(self) -> float | None:
        """Mean KL per token, in nats; None for an empty pool."""
        return sum(self.moved()) / self.tokens if self.pairs else None

    def members(self, chosen: Sequence[int], rows: int) -> list[Held]:
        """Some of the answers in batches of at most `rows`, to be trained on."""
        known = {number: self._reference(number) for number in {i // ROWS for i in chosen}}
        parts = {number: self._batches[number].split(reference) for number, reference in known.items()}
        ordered = sorted(chosen)
        out = []
        for start in range(0, len(ordered), rows):
            some = ordered[start:start + rows]
            out.append(Held(make_batch([self.pairs[i] for i in some], self._model.device), torch.cat([parts[i // ROWS][i % ROWS] for i in some])))
        return out

    def _reference(self, number: int) -> torch.Tensor:
        kept = self._kept[number]
        if kept is None:
            with self._adapter.off(), torch.no_grad():
                kept = finite_logprobs(self._lower.logits(self._batches[number]))
        return kept
