"""The last decoder layer at the positions that predict a completion token: what it makes of the others nobody reads.

Its keys and values are needed everywhere, its queries, the projection of what attention gives, and the MLP are not. Each of
these works on one position at a time, so it is given the chosen ones alone, and zeros stand for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lawf_repl.learn.batch import Batch
from lawf_repl.learn.head import replaced

ONE_BY_ONE = ("mlp", "q_proj", "o_proj")  # names of such parts in decoder layers of transformers
WORTH = 0.9  # of the positions: where more of them are chosen there is nothing to gain


class Last:
    """The parts of a layer that need not see every position. Whether they may be narrowed is for the caller to try."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self.parts: list[Any] = [module for name, module in layers[-1].named_modules() if name.rpartition(".")[2] in ONE_BY_ONE] if layers else []

    def worth(self, batch: Batch) -> bool:
        """Whether a batch has enough positions that nobody reads."""
        return bool(self.parts) and len(batch.rows) <= WORTH * batch.ids.numel()

    @contextmanager
    def narrowed(self, batch: Batch) -> Iterator[None]:
        """Inside, a forward over `batch` gives zeros in place of what those parts make of other positions."""
        with replaced([(part, partial(_chosen, part.forward, batch)) for part in self.parts]):
            yield


def _chosen(own: Callable[..., torch.Tensor], batch: Batch, given: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
    """`own` of the chosen positions of (B, T, D), zeros elsewhere; of anything else as it is."""
    if given.shape[:2] != batch.ids.shape:
        return own(given, *more, **named)
    some = own(given[batch.rows, batch.columns][None], *more, **named)  # (1, N, D)
    return some.new_zeros(*given.shape[:2], some.shape[-1]).index_put((batch.rows, batch.columns), some[0])
