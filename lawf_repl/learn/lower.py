"""Forwards that begin at the first layer with a LoRA and end before the head: below the one the adapted model is the base, and its
states are kept; the head is run apart, on as many positions at a time as there is room for.

Each layer below is told to pass on what it is given, the last of them what it gave before. That is tried once on the real
model; where the states come out otherwise (layers that hand on more than hidden states) everything is computed as usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from lawf_repl.engine.memory import beside_weights, is_full
from lawf_repl.learn.adapter import Adapter, layers_above, layers_below
from lawf_repl.learn.again import Again
from lawf_repl.learn.basis import Sample
from lawf_repl.learn.batch import Batch, starts_of
from lawf_repl.learn.behind import behind, can_be_cut, nbytes
from lawf_repl.learn.elementwise import Elementwise
from lawf_repl.learn.fused import Fused
from lawf_repl.learn.head import NOT_APART, Head, replaced
from lawf_repl.learn.last import Last
from lawf_repl.learn.packed import Packed
from lawf_repl.learn.stack import Stack

T = TypeVar("T")
CLOSE = 1e-3  # of the states' spread
PAST_BYTES = 2**30  # of states before the marks that are kept, where the adapter acts on completions alone
KEPT = 0.14  # of the weights: what layers on a CPU may keep of a batch for the backward pass; an accelerator says when it is full


class Lower:
    """A model without the layers below an adapter's first and without its head, for batches that are read again and again."""

    def __init__(self, adapter: Adapter) -> None:
        self.head = Head(adapter)
        self._layers: list[Any] = list(layers_below(adapter))
        self._above: list[Any] = list(layers_above(adapter))
        self._tried = not self._layers
        self._last = Last(self._above)
        self._last_tried = False
        self._fused, self._elementwise = Fused(adapter), Elementwise(self._above)
        self.again = Again(self._above, room_of(adapter.base.device, adapter.base))
        self._stack, self._below = Stack(adapter.base, self._above), Stack(adapter.base, self._layers)
        if not self.head.apart or not self._stack.holds(adapter.layers().values()):
            self._stack.layers.clear()
        self._stack_tried = False
        self._packed: dict[int, tuple[Batch, Packed]] = {}  # as _states, which it takes the place of
        self._states: dict[int, tuple[Batch, Any]] = {}  # by id() of the batch, which is kept with it
        self._model, self._reach = adapter.base, adapter.reach
        self._behind: dict[int, tuple[Batch, Batch]] = {}  # the same, to what of it comes behind the marks
        self._cut = self._reach is not None and can_be_cut(adapter.base, self._reach)

    def in_room(self, run: Callable[[], T]) -> T:
        """What `run` gives; where it runs out of memory, once more and from then on, with layers that are computed again."""
        try:
            return run()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if self.again.every or not is_full(error):
                raise
        self.again.every = True  # outside the handler, whose traceback would hold on to all that was computed
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

        With `whole`, every layer sees every position that the adapter can act on, as one who watches them needs it.
        """
        batch, kept = self.seen(batch)
        if self._reach is not None and batch.past is None:
            acting = partial(self._reach.only, self.acting(batch))
            with acting(), self.again.in_place(acting):
                return self._states_of(batch)
        if whole:
            return self._states_of(batch, kept)
        if (packed := self._pack(batch)) is not None:
            return self._stack.states(packed, self.again.left)
        with self._as_one(), self.again.in_place(self._as_one):
            if self.again.every or not self._last.worth(batch):  # what is computed again in the backward pass is computed whole
                return self._states_of(batch, kept)
            if not self._last_tried:
                self._try_last(batch, kept)
            with self._last.narrowed(batch):
                return self._states_of(batch, kept)

    def read(self, batch: Batch, sample: Sample | None = None) -> torch.Tensor:
        """As `states` (N, H), without gradients; what the layers with a LoRA are given is noted in `sample`, and must be what the base gives them."""
        if sample is None:
            return self.states(batch)
        with torch.no_grad():
            packed = self._pack(batch)
            if packed is None:
                with sample.watching():
                    return self.states(batch, whole=True)
            if packed.places is not None:
                sample.only(packed.places)
            states = self._stack.watched(packed, sample.see)
            sample.close()
            return states

    def apart(self, batches: Sequence[Batch]) -> bool:
        """Whether `states` and `read` of these batches, and the head behind them, can be run by several threads at once."""
        if self.head.alone is None or not batches or self._pack(batches[0]) is None:
            return False
        return not torch.is_grad_enabled() or self._stack.kept(sum(int(batch.mask.sum()) for batch in batches)) <= self.again.left

    def _pack(self, batch: Batch) -> Packed | None:
        """The batch as the stack takes it; None where that is not to be run."""
        if not self._stack.works or (self._layers and not self._below.works) or not len(batch.targets):
            return None
        if id(batch) not in self._packed:
            packed = self._stack.pack(batch)
            if self._layers:
                with torch.no_grad():
                    packed = replace(packed, states=self._below.states(packed))
            if not self._stack_tried:
                self._try_stack(batch, packed)
                return self._pack(batch)
            self._packed[id(batch)] = batch, packed
            self._states.pop(id(batch), None)
        return self._packed[id(batch)][1]

    @torch.no_grad()
    def _try_stack(self, batch: Batch, packed: Packed) -> None:
        """See on this batch that the stack gives what the layers do; where it does not, it is not used."""
        self._stack_tried = True
        expected = self.head.states(batch)
        try:
            good = _alike(self._stack.states(packed), expected)
        except NOT_APART:
            good = False
        if not good:
            self._stack.layers.clear()

    @contextmanager
    def _as_one(self) -> Iterator[None]:
        """Inside, what can be run as one operation is."""
        with self._fused.in_place(), self._elementwise.in_place():
            yield

    def seen(self, batch: Batch) -> tuple[Batch, bool]:
        """What of a batch is run, and whether its states before the marks are kept. It may be given in place of the batch."""
        if not self._cut or self._reach is None:
            return batch, True
        if batch.past is not None:
            return batch, any(seen is batch for _, seen in self._behind.values())
        if id(batch) in self._behind:
            return self._behind[id(batch)][1], True
        seen = behind(self._model, self._reach, batch)
        if seen is None:
            return batch, True
        kept = sum(nbytes(one) for _, one in self._behind.values()) + nbytes(seen) <= PAST_BYTES
        if kept:
            self._behind[id(batch)] = batch, seen
        return seen, kept

    def acting(self, batch: Batch) -> torch.Tensor:
        """The real tokens of a batch on which the adapter acts (B, T)."""
        if self._reach is None or batch.past is not None:
            return batch.mask.bool()
        starts = torch.tensor(starts_of(batch, self._reach), device=batch.ids.device)
        return batch.mask.bool() & (torch.arange(batch.ids.shape[1], device=starts.device)[None] >= starts[:, None])

    def _states_of(self, batch: Batch, kept: bool = True) -> torch.Tensor:
        if not self._layers or not kept:
            return self.head.states(batch)
        if id(batch) in self._states:
            with self._skipping(self._states[id(batch)][1]):
                return self.head.states(batch)
        with self._forwards([*([None] * (len(self._layers) - 1)), self._recording(batch)]):
            whole = self.head.states(batch)
        if batch.past is not None:
            batch.past.cache.forget(len(self._layers))
        if not self._tried:
            self._try(batch, whole.detach())
        return whole

    @torch.no_grad()
    def _try_last(self, batch: Batch, kept: bool) -> None:
        """See on this batch that the last layer may be narrowed; where it may not, it is not."""
        self._last_tried = True
        expected = self._states_of(batch, kept)
        try:
            with self._last.narrowed(batch):
                good = _alike(self._states_of(batch, kept), expected)
        except NOT_APART:
            good = False
        if not good:
            self._last.parts.clear()

    def forget(self, batch: Batch) -> None:
        """Let go of a batch's states."""
        _, seen = self._behind.pop(id(batch), (batch, batch))
        self._states.pop(id(seen), None)
        self._packed.pop(id(seen), None)

    @torch.no_grad()
    def _try(self, batch: Batch, whole: torch.Tensor) -> None:
        self._tried = True
        try:
            again = self._states_of(batch)
            good = _alike(again, whole)
        except NOT_APART:  # it needs what the layers would have given
            good = False
        if not good:
            self._layers, self._states, self._behind, self._packed = [], {}, {}, {}
            self._stack.layers.clear()

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
    def _forwards(self, forwards: list[Callable[..., Any] | None]) -> Iterator[None]:
        """The layers' own forwards replaced inside the block; None leaves one as it is."""
        with replaced([(layer, forward) for layer, forward in zip(self._layers, forwards, strict=True) if forward is not None]):
            yield


def room_of(device: torch.device, model: Any) -> float:
    """Bytes that layers may keep of a batch: a CPU has no error that says it is full, as an accelerator has."""
    return beside_weights(model, KEPT) if device.type == "cpu" else math.inf


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether states (N, H) are the same up to rounding."""
    spread = float(expected.float().std()) if expected.numel() > 1 else 0.0
    return torch.allclose(found, expected, rtol=0, atol=CLOSE * spread, equal_nan=True)


def _fixed(part: Any) -> Any:
    return part.detach() if isinstance(part, torch.Tensor) else part
