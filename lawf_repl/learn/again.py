"""Decoder layers that keep only what they were given for the backward pass, and compute the rest again there (Chen et al. 2016).

As few as there must be: what all layers keep, of a batch, has a limit beside the weights, and the lowest layers make up for what
is above it. The highest are left as they are: what they keep is let go of before a lower one is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lawf_repl.learn.behind import FixedCache
from lawf_repl.learn.head import replaced

CACHES = frozenset({"past_key_values", "past_key_value", "cache_params"})
WIDER = 2  # times as many tokens in a text, from which on what layers keep of a token is counted anew
Forward = Callable[..., Any]


class Again:
    """The layers of a model that a step runs, lowest first, and the bytes that they may keep of a batch."""

    def __init__(self, layers: Sequence[Any], room: float) -> None:
        self.every = False  # every layer is computed again, whatever room there is
        self.room = room
        self._layers = layers
        self._rates: dict[int, float] = {}  # bytes that each layer keeps of a token, by its place,
        self._width = 0                     # in texts of this many tokens: the weights of some attentions grow with it

    @property
    def left(self) -> float:
        """Bytes that may be kept as things stand."""
        return 0 if self.every else self.room

    @contextmanager
    def in_place(self, around: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Inside, forwards are run so. What they are run in here, the backward pass runs them in as well: `around` makes it again."""
        with replaced([(layer, partial(self._forward, place, layer.forward, around)) for place, layer in enumerate(self._layers)]):
            yield

    def count(self, tokens: int, given: int) -> int:
        """How many layers are computed again for a batch of `tokens` tokens of which each layer is given `given` bytes."""
        if self.every:
            return len(self._layers)
        kept = [rate * tokens for _, rate in sorted(self._rates.items())]
        over, again = sum(kept) - self.room, 0
        while over > 0 and again < len(kept) - 1:  # never the last one, which may be run on a part of the positions
            over -= max(kept[again] - given, 0)
            again += 1
        return again

    def _forward(self, place: int, own: Forward, around: Callable[[], AbstractContextManager[object]], *given: Any, **more: Any) -> Any:
        hidden = given[0] if given else more.get("hidden_states")
        if not torch.is_grad_enabled() or not (self.every or self._counted(place, own, hidden, given, more)):
            return own(*given, **more)

        def run(*given: Any, **more: Any) -> Any:
            with around():
                return own(*given, **more)

        return checkpoint(run, *given, use_reentrant=False, **_once_more(more))


    def _counted(self, place: int, own: Forward, hidden: Any, given: tuple[Any, ...], more: dict[str, Any]) -> bool:
        """Whether a layer is computed again, by what all keep. Until that is known it is, and each is run once more to find it out."""
        if self.room == math.inf or not isinstance(hidden, torch.Tensor) or hidden.dim() < 2 or not hidden.numel():
            return False
        tokens, width = hidden.numel() // hidden.shape[-1], hidden.shape[-2]
        if width > WIDER * self._width:
            self._rates, self._width = {}, width
        known = len(self._rates) == len(self._layers)
        if place not in self._rates:
            self._rates[place] = _kept(self._layers[place], partial(own, *given, **_once_more(more))) / tokens
        return place < (self.count(tokens, hidden.nbytes) if known else len(self._layers) - 1)


def _once_more(more: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a forward that is run twice: some models hand a cache down unasked, and the second time would write behind the first."""
    return {name: value if name not in CACHES or isinstance(value, FixedCache) else None for name, value in more.items()}


def _kept(layer: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that a layer's forward keeps for its backward pass. They are let go of once they are counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.new_empty(0)

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda nothing: nothing):
        run()
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)
