"""A linear layer with its LoRA as one operation while training: y = W x + s B (A x).

peft's forward makes a tensor as large as y three times over (B's output, scaled, added), and the backward pass as many. Here
what the LoRA adds goes into y itself, and into dx. Only plain layers are run so: anything else keeps peft's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lawf_repl.engine.products import FrozenLinear, Product, product_of
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.head import replaced


class Fused:
    """The layers of an adapter that can be run so."""

    def __init__(self, adapter: Adapter) -> None:
        self.layers: list[Any] = [layer for layer in adapter.layers().values() if is_plain_lora(layer)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, their forwards are the one operation; where the adapter is off, the base's own."""
        with replaced([(layer, partial(_forward, layer, layer.forward)) for layer in self.layers]):
            yield


def is_plain_lora(layer: Any) -> bool:
    """Whether a layer is a linear one with one LoRA and nothing else: no quantized weight, no other kind of LoRA, nothing hooked into it."""
    from peft.tuners.lora.layer import Linear

    base: Any = getattr(layer, "base_layer", None)
    if type(layer) is not Linear or type(base) not in (torch.nn.Linear, FrozenLinear) or len(layer.lora_A) != 1 or layer.lora_variant or layer.merged:
        return False
    name = next(iter(layer.lora_A))
    parts: list[Any] = [layer.lora_A[name], layer.lora_B[name]]
    dropout: Any = layer.lora_dropout[name]
    hooked = "forward" in base.__dict__ or base._forward_hooks or base._forward_pre_hooks
    alike = all(type(part) is torch.nn.Linear and getattr(part, "bias", None) is None and part.weight.dtype == base.weight.dtype for part in parts)
    return alike and not hooked and (isinstance(dropout, torch.nn.Identity) or not dropout.training) and list(layer.active_adapters) == [name]


def _forward(layer: Any, own: Callable[..., torch.Tensor], x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
    name = next(iter(layer.lora_A))
    a, b, base = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.base_layer
    if given or named or layer.disable_adapters or base.weight.requires_grad or x.dtype != a.dtype or torch.is_autocast_enabled(x.device.type):
        return own(x, *given, **named)
    flat = x.reshape(-1, x.shape[-1])
    y: torch.Tensor = _Linear.apply(flat, base.weight, base.bias, a, b, float(layer.scaling[name]), product_of(base))  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


class _Linear(torch.autograd.Function):
    """y (N, O) of x (N, I), W (O, I), a bias (O) or None, A (r, I), B (O, r), the scale s and how products with W are made.

    W and the bias are frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor,
                scale: float, made: Product) -> torch.Tensor:
        # The few rows come first in each product of theirs: the other way round MKL takes up to six times as long.
        inner = a @ x.T  # (r, N)
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, a, b, inner)  # A as a rule is fixed, and x then not needed
        ctx.scale, ctx.made = scale, made
        return made(x, weight, bias).addmm_(inner.T, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = slopes
        x, weight, a, b, inner = ctx.saved_tensors
        inside = b.T.contiguous() @ dy.T if ctx.needs_input_grad[0] or ctx.needs_input_grad[3] else None  # (r, N)
        dx = ctx.made(dy, weight.t(), None).addmm_(inside.T, a, alpha=ctx.scale) if ctx.needs_input_grad[0] and inside is not None else None
        da = (inside @ x).mul_(ctx.scale) if ctx.needs_input_grad[3] and inside is not None else None
        db = (inner @ dy).mul_(ctx.scale).T.contiguous() if ctx.needs_input_grad[4] else None
        return dx, None, None, da, db, None, None
