"""Answers of the base that training is to leave as they are, measured against a kept reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lawf_repl.engine.threads import side_by_side, workers
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.basis import Moments, Sample
from lawf_repl.learn.batch import Batch, Pair, make_batch
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.reference import Reference, compare

ROWS = 32                 # answers a forward pass at most,
TOKENS = 2**13            # and tokens of all of them, padding included
KEPT_BYTES = 2**28        # of references in all; where the vocabulary is so large that they need more, they are kept as hidden states
HELD_BYTES = 2**28        # of what a backward pass keeps of its forward, on a CPU; four times as much on an accelerator
KEPT_WIDTHS = 24          # of a token in a layer, in hidden sizes: norms, queries, keys and values, and the MLP's three


@dataclass(frozen=True)
class Held:
    """One batch of answers with the base's distributions."""

    pairs: tuple[Pair, ...]
    batch: Batch
    reference: Reference  # N tokens


class Pool:
    """Prompts with the base's own answers. The adapter is off while it is made."""

    def __init__(self, adapter: Adapter, pairs: Sequence[Pair], lower: Lower, moments: Moments | None = None) -> None:
        self._model, self._lower = adapter.base, lower
        ordered = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        parts = list(packed(ordered, ROWS, TOKENS))
        self.pairs = [pair for part in parts for pair in part]
        self.tokens = sum(len(answer) for _, answer in self.pairs)
        self._batches = [make_batch(part, self._model.device) for part in parts]
        self._place = [(number, row) for number, part in enumerate(parts) for row in range(len(part))]
        self._most = workers(adapter.base)
        with adapter.off(), torch.no_grad():
            self._references = self._read(moments)

    def _read(self, moments: Moments | None) -> list[Reference]:
        """The base's distributions, and the layers' inputs for `moments`."""
        lower, left = self._lower, KEPT_BYTES
        samples: list[Sample] = []

        def read(batch: Batch, sample: Sample | None, whole: bool) -> Reference:
            seen, _ = lower.seen(batch)
            if moments is None or sample is not None:
                return Reference.of(lower.head, lower.read(seen, sample), whole)
            own = moments.sample(moments.draw(lower.acting(seen)))
            states = lower.read(seen, own)
            moments.add(own)
            return Reference.of(lower.head, states, whole)

        work = []
        apart = self._most > 1 and lower.apart(self._batches)
        for batch in self._batches:
            left -= 4 * len(batch.targets) * lower.head.vocabulary
            if apart and moments is not None:  # in their order, whoever comes first
                samples.append(moments.sample(moments.draw(lower.acting(batch))))
            work.append(partial(read, batch, samples[-1] if apart and moments is not None else None, left >= 0))
        found = side_by_side(work, self._most if apart else 1)
        if moments is not None:
            for sample in samples:
                moments.add(sample)
        return found

    @torch.no_grad()
    def moved(self) -> list[float]:
        """KL(base || adapted) of each answer, summed over its tokens, in nats; in the order of `pairs`."""
        def look(batch: Batch, reference: Reference) -> torch.Tensor:
            return compare(self._lower.head, self._lower.states(batch), reference).kl

        work = [partial(look, batch, reference) for batch, reference in zip(self._batches, self._references, strict=True)]
        found = side_by_side(work, self._most if self._most > 1 and self._lower.apart(self._batches) else 1)
        return [float(row.sum()) for batch, kl in zip(self._batches, found, strict=True) for row in batch.split(kl)]

    def drift(self) -> float | None:
        """Mean KL per token, in nats; None for an empty pool."""
        return sum(self.moved()) / self.tokens if self.pairs else None

    def members(self, chosen: Sequence[int], rows: int) -> list[Held]:
        """Some of the answers in batches of at most `rows`, to be trained on; fewer where a backward pass would keep too much."""
        ordered = sorted(chosen)
        out, done = [], 0
        for some in packed([self.pairs[i] for i in ordered], rows, self._backward_tokens()):
            own, done = ordered[done:done + len(some)], done + len(some)
            out.append(Held(tuple(some), make_batch(some, self._model.device), Reference.joined([self._one(i) for i in own])))
        return out

    def fits(self, pairs: Sequence[Pair]) -> bool:
        """Whether one backward pass has room for all of them."""
        return max(len(prompt) + len(answer) for prompt, answer in pairs) * len(pairs) <= self._backward_tokens()

    def _one(self, i: int) -> Reference:
        number, row = self._place[i]
        places = torch.arange(len(self._batches[number].targets), device=self._model.device)
        return self._references[number].at(self._batches[number].split(places)[row])

    def _backward_tokens(self) -> int:
        width = int(self._model.config.get_text_config(decoder=True).hidden_size) * self._model.dtype.itemsize
        room = HELD_BYTES if self._model.device.type == "cpu" else 4 * HELD_BYTES
        return int(room // (KEPT_WIDTHS * width * max(self._lower.above, 1)))


def packed(pairs: Sequence[Pair], rows: int, tokens: int) -> Iterator[list[Pair]]:
    """Neighbours together: at most `rows` of them, and no more than `tokens` with the padding; one that is longer is alone."""
    part: list[Pair] = []
    longest = 0
    for pair in pairs:
        length = len(pair[0]) + len(pair[1])
        if part and (len(part) == rows or max(longest, length) * (len(part) + 1) > tokens):
            yield part
            part, longest = [], 0
        part.append(pair)
        longest = max(longest, length)
    if part:
        yield part
