"""Forwards that begin at the first layer with a LoRA: below it the adapted model is the base, and its states are kept.

Each layer below is told to pass on what it is given, the last of them what it gave before. That is tried once on the real
model; where the logits come out otherwise (layers that hand on more than hidden states) everything is computed as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lawf_repl.learn.adapter import Adapter, layers_below
from lawf_repl.learn.batch import Batch, completion_logits

CLOSE = 1e-3  # of the logits' spread


class Lower:
    """The layers below an adapter's first, for batches that are read again and again."""

    def __init__(self, adapter: Adapter) -> None:
        self._model = adapter.base
        self._layers: list[Any] = list(layers_below(adapter))
        self._tried = not self._layers
        self._states: dict[int, tuple[Batch, Any]] = {}  # by id() of the batch, which is kept with it

    def logits(self, batch: Batch) -> torch.Tensor:
        """As completion_logits (N, V). A batch that comes again must be the same object."""
        if not self._layers:
            return completion_logits(self._model, batch)
        if id(batch) in self._states:
            with self._skipping(self._states[id(batch)][1]):
                return completion_logits(self._model, batch)
        with self._forwards([*([None] * (len(self._layers) - 1)), self._recording(batch)]):
            whole = completion_logits(self._model, batch)
        if not self._tried:
            self._try(batch, whole.detach())
        return whole

    def forget(self, batch: Batch) -> None:
        """Let go of a batch's states."""
        self._states.pop(id(batch), None)

    @torch.no_grad()
    def _try(self, batch: Batch, whole: torch.Tensor) -> None:
        self._tried = True
        try:
            again = self.logits(batch)
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
    def _forwards(self, forwards: list[Callable[..., Any] | None]) -> Iterator[None]:
        """The layers' own forwards replaced inside the block; None leaves one as it is."""
        before = [layer.__dict__.get("forward") for layer in self._layers]  # of a model spread over devices they are replaced already
        try:
            for layer, forward in zip(self._layers, forwards, strict=True):
                if forward is not None:
                    layer.forward = forward
            yield
        finally:
            for layer, own in zip(self._layers, before, strict=True):
                if own is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = own


def _fixed(part: Any) -> Any:
    return part.detach() if isinstance(part, torch.Tensor) else part
