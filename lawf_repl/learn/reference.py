"""What the base predicts along answers that are trained on or held, and how far the adapted model is from it.

Both come chunk by chunk, so that no (N, V) tensor in float32 is there twice, and the slope of the divergence with them, so that
nothing of a chunk has to be kept for a backward pass: with p of the adapted model and q of the base, d KL(q || p) / d logits = p - q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from lawf_repl.learn.head import Head
from lawf_repl.learn.objective import finite_logprobs

CHUNK_BYTES = 2**24  # of one tensor of log-probabilities; a chunk has five of them at a time


class Reference:
    """The base's distributions at N tokens: as log-probabilities, or as states that those follow from."""

    def __init__(self, head: Head, states: torch.Tensor, logprobs: torch.Tensor | None = None) -> None:
        self._head, self._states, self._logprobs = head, states, logprobs

    @classmethod
    @torch.no_grad()
    def of(cls, head: Head, states: torch.Tensor, whole: bool) -> Reference:
        """From the base's states (N, H); `whole` keeps the log-probabilities (N, V) too, which then need no head any more."""
        found = cls(head, states)
        if not whole:
            return found
        logprobs = torch.empty(len(states), head.vocabulary, device=states.device)
        for start, stop in chunks(len(states), head.vocabulary):
            logprobs[start:stop] = found.rows(start, stop)
        return cls(head, states, logprobs)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def size(self) -> int:
        """Bytes of its log-probabilities, kept or not."""
        return 4 * len(self) * self._head.vocabulary

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """ref_logprobs (stop - start, V)."""
        if self._logprobs is not None:
            return self._logprobs[start:stop]
        return finite_logprobs(self._head.logits(self._states[start:stop]))

    def at(self, places: torch.Tensor) -> Reference:
        """The same at some of the tokens (n,) alone."""
        return Reference(self._head, self._states[places], None if self._logprobs is None else self._logprobs[places])

    @classmethod
    def joined(cls, parts: Sequence[Reference]) -> Reference:
        """One behind the other, at least one; log-probabilities stay kept where all have them."""
        kept = [part._logprobs for part in parts if part._logprobs is not None]
        return cls(parts[0]._head, torch.cat([part._states for part in parts]), torch.cat(kept) if len(kept) == len(parts) else None)


Losses = Callable[[torch.Tensor], torch.Tensor]  # log-probabilities at the anchors (M, V) to what is lowered there (M,)


class Compared(NamedTuple):
    """The adapted model beside a reference, at M anchors and the N - M tokens behind them."""

    kl: torch.Tensor                # (N - M,) KL(base || adapted) in nats
    top: torch.Tensor               # (N,) most probable token of the adapted model
    logprobs: torch.Tensor          # (M, V) at the anchors
    loss: float                     # summed KL, and the anchors' losses where they were given
    slope: torch.Tensor | None      # (N, H) gradient of `loss` for the states, where it was asked for


def compare(head: Head, states: torch.Tensor, reference: Reference, slope: bool = False, anchors: int = 0,
            losses: Losses | None = None) -> Compared:
    """The adapted model's states (N, H) against the base; the first `anchors` of them are not in the reference, and have losses of their own."""
    kl, top, slopes, loss = [], [], [], 0.0
    at_anchors = states.new_zeros(0, head.vocabulary, dtype=torch.float32)
    for start, stop in chunks(len(states), head.vocabulary, anchors):
        own = states[start:stop].detach().requires_grad_(slope)
        with torch.set_grad_enabled(slope):
            logits = head.logits(own)  # (n, V)
        first = anchors if start == 0 else 0  # anchors in this chunk
        toward = []
        if first:
            leaf = logits[:first].detach().requires_grad_(slope)
            with torch.set_grad_enabled(slope):
                at_anchors = finite_logprobs(leaf)
                if losses is not None:
                    lowered = losses(at_anchors).sum()
                    loss += float(lowered.detach())
            if slope and losses is not None:
                toward.append(torch.autograd.grad(lowered, leaf)[0])
            at_anchors = at_anchors.detach()
        with torch.no_grad():
            top.append(logits.argmax(-1))
            logprobs = finite_logprobs(logits[first:])
            base = reference.rows(start + first - anchors, stop - anchors)
            q = base.exp()
            kl.append((base - logprobs).mul_(q).sum(-1))
            if slope:
                toward.append(logprobs.exp_().mul_(q.sum(-1, keepdim=True)).sub_(q))
                whole = torch.cat(toward) if len(toward) > 1 else toward[0]
                slopes.append(torch.autograd.grad(logits, own, whole.to(logits.dtype))[0])
    none = states.new_zeros(0, dtype=torch.float32)
    found = torch.cat(kl) if kl else none
    return Compared(found, torch.cat(top) if top else none.long(), at_anchors, loss + float(found.sum()), torch.cat(slopes) if slopes else None)


def chunks(count: int, vocabulary: int, least: int = 0) -> Iterator[tuple[int, int]]:
    """[start, stop) of as many tokens at a time as their log-probabilities allow, the first of at least `least`."""
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    first = min(max(rows, least), count)
    if count:
        yield 0, first
    yield from ((start, min(start + rows, count)) for start in range(first, count, rows))
