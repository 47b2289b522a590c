"""What the base predicts along answers that are trained on or held, and how far the adapted model is from it.

Both come chunk by chunk, so that no (N, V) tensor in float32 is there twice, and the slope of the divergence with them, so that
nothing of a chunk has to be kept for a backward pass: with p of the adapted model and q of the base, d KL(q || p) / d logits = p - q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from lawf_repl.learn.head import Head, blocks
from lawf_repl.learn.objective import LEAST_LOGPROB, finite_logprobs

CHUNK_BYTES = 2**26  # of one tensor of log-probabilities; a chunk has two of them at a time, and blocks of the vocabulary


class Reference:
    """The base's distributions at N tokens: as log-probabilities, or as states that those follow from."""

    def __init__(self, head: Head, states: torch.Tensor, logprobs: torch.Tensor | None = None, mass: torch.Tensor | None = None) -> None:
        self._head, self._states, self._logprobs = head, states, logprobs
        self._mass = mass  # (N,) what the probabilities add up to with their rounding

    @classmethod
    @torch.no_grad()
    def of(cls, head: Head, states: torch.Tensor, whole: bool) -> Reference:
        """From the base's states (N, H); `whole` keeps the log-probabilities (N, V) too, which then need no head any more."""
        found = cls(head, states)
        if not whole:
            return found
        logprobs = torch.empty(len(states), head.vocabulary, device=states.device)
        mass = torch.empty(len(states), device=states.device)
        for start, stop in chunks(len(states), head.vocabulary):
            logprobs[start:stop] = found.rows(start, stop)
            mass[start:stop] = _mass(logprobs[start:stop])
        return cls(head, states, logprobs, mass)

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
        return normalized(self._head.free(self._states[start:stop])[0])

    def mass(self, start: int, stop: int, rows: torch.Tensor) -> torch.Tensor:
        """What the probabilities of `rows` add up to (stop - start,)."""
        return _mass(rows) if self._mass is None else self._mass[start:stop]

    def at(self, places: torch.Tensor) -> Reference:
        """The same at some of the tokens (n,) alone."""
        kept = [None if part is None else part[places] for part in (self._logprobs, self._mass)]
        return Reference(self._head, self._states[places], *kept)

    @classmethod
    def joined(cls, parts: Sequence[Reference]) -> Reference:
        """One behind the other, at least one; log-probabilities stay kept where all have them."""
        states = torch.cat([part._states for part in parts])
        kept = [(part._logprobs, part._mass) for part in parts if part._logprobs is not None and part._mass is not None]
        if len(kept) < len(parts):
            return cls(parts[0]._head, states)
        return cls(parts[0]._head, states, torch.cat([logprobs for logprobs, _ in kept]), torch.cat([mass for _, mass in kept]))


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
        logits, back = head.free(states[start:stop].detach(), slope)  # (n, V)
        first = anchors if start == 0 else 0  # anchors in this chunk
        toward = None
        if first:
            leaf = logits[:first].detach().requires_grad_(slope)  # read before it is written over
            with torch.set_grad_enabled(slope):
                at_anchors = finite_logprobs(leaf)
                if losses is not None:
                    lowered = losses(at_anchors).sum()
                    loss += float(lowered.detach())
            if slope and losses is not None:
                toward = torch.autograd.grad(lowered, leaf)[0]
            at_anchors = at_anchors.detach()
        with torch.no_grad():
            top.append(logits.argmax(-1))
            rows = start + first - anchors, stop - anchors
            base = reference.rows(*rows)
            kl.append(divergence(logits[first:], base, reference.mass(*rows, base) if slope else None))
            if slope:
                logits[:first] = 0 if toward is None else toward
                slopes.append(back(logits))
        del logits, back, base  # before those of the next chunk are made
    none = states.new_zeros(0, dtype=torch.float32)
    found = torch.cat(kl) if kl else none
    return Compared(found, torch.cat(top) if top else none.long(), at_anchors, loss + float(found.sum()), torch.cat(slopes) if slopes else None)


def divergence(logits: torch.Tensor, base: torch.Tensor, mass: torch.Tensor | None = None) -> torch.Tensor:
    """KL(base || adapted) in nats (n,) from the base's log-probabilities and the adapted model's logits, both (n, V).

    The logits are written over: with the slope for them, where `mass` (n,) says what the base's probabilities add up to.
    """
    whole, found = _logsumexp(logits), logits.new_zeros(len(logits))
    for start, stop in blocks(logits):
        own, known = logits[:, start:stop], base[:, start:stop]
        own.sub_(whole).clamp_min_(LEAST_LOGPROB)
        q = known.exp()
        found += (known - own).mul_(q).sum(-1)
        if mass is not None:
            own.exp_().mul_(mass[:, None]).sub_(q)
    return found


def normalized(logits: torch.Tensor) -> torch.Tensor:
    """Logits (n, V) in float32 made log-probabilities, in place; none is below LEAST_LOGPROB."""
    whole = _logsumexp(logits)
    for start, stop in blocks(logits):
        logits[:, start:stop].sub_(whole).clamp_min_(LEAST_LOGPROB)
    return logits


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """(n, 1) of logits (n, V)."""
    return torch.stack([logits[:, start:stop].logsumexp(-1) for start, stop in blocks(logits)]).logsumexp(0)[:, None]


def _mass(logprobs: torch.Tensor) -> torch.Tensor:
    return torch.stack([logprobs[:, start:stop].exp().sum(-1) for start, stop in blocks(logprobs)]).sum(0)


def chunks(count: int, vocabulary: int, least: int = 0) -> Iterator[tuple[int, int]]:
    """[start, stop) of as many tokens at a time as their log-probabilities allow, the first of at least `least`."""
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    first = min(max(rows, least), count)
    if count:
        yield 0, first
    yield from ((start, min(start + rows, count)) for start in range(first, count, rows))
