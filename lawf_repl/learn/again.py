"""Decoder layers that keep only what they were given for the backward pass, and compute the rest again there (Chen et al. 2016).

As few as there must be: what all layers keep, of a batch, has a limit beside the weights, and the lowest layers make up for what
is above it. The highest are left as they are: what they keep is let go of before a lower one is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lawf_repl.learn.behind import FixedCache
from lawf_repl.learn.head import replaced

CACHES = frozenset({"past_key_values", "past_key_value", "cache_params"})
Forward = Callable[..., Any]


class Again:
    """The layers of a model that a step runs, lowest first, and the bytes that they may keep of a batch."""

    def __init__(self, layers: Sequence[Any], room: float) -> None:
        self.every = False  # every layer is computed again, whatever room there is
        self._layers, self._room = layers, room
        self._rate: float | None = None  # bytes that a layer keeps of a token

    @contextmanager
    def in_place(self, around: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Inside, forwards are run so. What they are run in here, the backward pass runs them in as well: `around` makes it again."""
        with ExitStack() as stack:
            for place, layer in enumerate(self._layers):
                stack.enter_context(replaced(layer, partial(self._forward, place, layer.forward, around)))
            yield

    def count(self, tokens: int, given: int) -> int:
        """How many layers are computed again for a batch of `tokens` tokens of which each layer is given `given` bytes."""
        if self.every or self._rate is None:
            return len(self._layers) if self.every else 0
        kept = self._rate * tokens
        over = len(self._layers) * kept - self._room
        # never the last one, which may be run on a part of the positions
        return min(math.ceil(over / (kept - given)), len(self._layers) - 1) if over > 0 and kept > given else 0

    def _forward(self, place: int, own: Forward, around: Callable[[], AbstractContextManager[object]], *given: Any, **more: Any) -> Any:
        hidden = given[0] if given else more.get("hidden_states")
        if not torch.is_grad_enabled() or not isinstance(hidden, torch.Tensor) or not hidden.numel():
            return own(*given, **more)
        tokens = hidden.numel() // hidden.shape[-1]
        if self._rate is None and not self.every and self._room < math.inf:
            self._rate = _kept(self._layers[place], partial(own, *given, **_once_more(more))) / tokens
        if place >= self.count(tokens, hidden.nbytes):
            return own(*given, **more)

        def run(*given: Any, **more: Any) -> Any:
            with around():
                return own(*given, **more)

        return checkpoint(run, *given, use_reentrant=False, **_once_more(more))


def _once_more(more: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a forward that is run twice: some models hand a cache down unasked, and the second time would write behind the first."""
    return {name: value if name not in CACHES or isinstance(value, FixedCache) else None for name, value in more.items()}


def _kept(layer: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that a forward keeps for its backward pass; this once nothing is kept."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.new_empty(0)

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda nothing: nothing):
        run()
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)
