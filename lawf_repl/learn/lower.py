"""Forwards that begin at the first layer with a LoRA and end before the head: below the one the adapted model is the base, and its
states are kept; the head is run apart, on as many positions at a time as there is room for.

Each layer below is told to pass on what it is given, the last of them what it gave before. That is tried once on the real
model; where the states come out otherwise (layers that hand on more than hidden states) everything is computed as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from lawf_repl.engine.memory import is_full
from lawf_repl.learn.adapter import Adapter, layers_above, layers_below
from lawf_repl.learn.batch import Batch
from lawf_repl.learn.fused import Fused
from lawf_repl.learn.head import NOT_APART, Head, replaced
from lawf_repl.learn.last import Last

T = TypeVar("T")
CLOSE = 1e-3  # of the states' spread
CACHES = frozenset({"past_key_values", "past_key_value", "cache_params"})


class Lower:
    """A model without the layers below an adapter's first and without its head, for batches that are read again and again."""

    def __init__(self, adapter: Adapter) -> None:
        self.head = Head(adapter)
        self.thrifty = False  # a backward pass computes each layer again, in place of keeping what it needs of it
        self._layers: list[Any] = list(layers_below(adapter))
        self._above: list[Any] = list(layers_above(adapter))
        self._tried = not self._layers
        self._last = Last(self._above)
        self._last_tried = False
        self._fused = Fused(adapter)
        self._states: dict[int, tuple[Batch, Any]] = {}  # by id() of the batch, which is kept with it

    def in_room(self, run: Callable[[], T]) -> T:
        """What `run` gives; where it runs out of memory, once more and from then on, with layers that are computed again."""
        try:
            return run()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if self.thrifty or not is_full(error):
                raise
        self.thrifty = True  # outside the handler, whose traceback would hold on to all that was computed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return run()

    @property
    def above(self) -> int:
        """Layers that a step runs."""
        return len(self._above)

    def logits(self, batch: Batch) -> torch.Tensor:
        """As completion_logits (N, V)."""
        return self.head.logits(self.states(batch))

    def states(self, batch: Batch, whole: bool = False) -> torch.Tensor:
        """The head's input at each completion token (N, H). A batch that comes again must be the same object.

        With `whole`, every layer sees every position, as one who watches them needs it.
        """
        if whole:
            return self._states_of(batch)
        if self.thrifty:  # what is computed again in the backward pass is computed as it always is
            with self._again():
                return self._states_of(batch)
        with self._fused.in_place():
            if not self._last.worth(batch):
                return self._states_of(batch)
            if not self._last_tried:
                self._try_last(batch)
            with self._last.narrowed(batch):
                return self._states_of(batch)

    def _states_of(self, batch: Batch) -> torch.Tensor:
        if not self._layers:
            return self.head.states(batch)
        if id(batch) in self._states:
            with self._skipping(self._states[id(batch)][1]):
                return self.head.states(batch)
        with self._forwards([*([None] * (len(self._layers) - 1)), self._recording(batch)]):
            whole = self.head.states(batch)
        if not self._tried:
            self._try(batch, whole.detach())
        return whole

    @torch.no_grad()
    def _try_last(self, batch: Batch) -> None:
        """See on this batch that the last layer may be narrowed; where it may not, it is not."""
        self._last_tried = True
        expected = self._states_of(batch)
        try:
            with self._last.narrowed(batch):
                good = torch.allclose(self._states_of(batch), expected, rtol=0, atol=CLOSE * float(expected.float().std()), equal_nan=True)
        except NOT_APART:
            good = False
        if not good:
            self._last.parts.clear()

    def forget(self, batch: Batch) -> None:
        """Let go of a batch's states."""
        self._states.pop(id(batch), None)

    @torch.no_grad()
    def _try(self, batch: Batch, whole: torch.Tensor) -> None:
        self._tried = True
        try:
            again = self._states_of(batch)
            good = torch.allclose(again, whole, rtol=0, atol=CLOSE * float(whole.float().std()), equal_nan=True)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):  # it needs what the layers would have given
            good = False
        if not good:
            self._layers, self._states = [], {}

    def _recording(self, batch: Batch) -> Callable[..., Any]:
        last = self._layers[-1].forward

        def forward(*given: Any, **more: Any) -> Any:
            out = last(*given, **more)
            self._states[id(batch)] = (batch, tuple(_fixed(part) for part in out) if isinstance(out, tuple) else _fixed(out))
            return out
        return forward

    def _skipping(self, state: Any) -> Any:
        def through(*given: Any, **more: Any) -> Any:
            hidden = given[0] if given else more["hidden_states"]
            return (hidden, *state[1:]) if isinstance(state, tuple) else hidden

        return self._forwards([*([through] * (len(self._layers) - 1)), lambda *given, **more: state])

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Inside, where it is asked for, the layers with a LoRA keep only what they were given."""
        with ExitStack() as stack:
            for layer in self._above if self.thrifty and torch.is_grad_enabled() else ():
                stack.enter_context(replaced(layer, partial(_twice, layer.forward)))
            yield

    @contextmanager
    def _forwards(self, forwards: list[Callable[..., Any] | None]) -> Iterator[None]:
        """The layers' own forwards replaced inside the block; None leaves one as it is."""
        with ExitStack() as stack:
            for layer, forward in zip(self._layers, forwards, strict=True):
                if forward is not None:
                    stack.enter_context(replaced(layer, forward))
            yield


def _twice(own: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """A layer's forward that is computed again in the backward pass."""
    for name in CACHES & more.keys():  # some models hand one down unasked, and the second time would write behind the first
        more[name] = None
    return checkpoint(own, *given, use_reentrant=False, **more)


def _fixed(part: Any) -> Any:
    return part.detach() if isinstance(part, torch.Tensor) else part
