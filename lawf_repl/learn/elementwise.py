"""RMS norms and gated products as one operation each while training: what is computed is the same, less of it is kept for the backward pass.

transformers writes both as a row of elementary operations, of which each keeps a tensor as large as its input. Of a norm the input
is enough, of act(gate) * up the two factors. Modules are taken for such where their forward gives the same on made-up numbers;
everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from lawf_repl.learn.head import NOT_APART, replaced

CLOSE = 1e-5  # of what comes out


class Elementwise:
    """The norms and MLPs of some layers that can be run so."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self.parts: list[tuple[Any, Callable[..., torch.Tensor]]] = []
        for layer in layers:
            for module in layer.modules():
                if _is_norm(module):
                    self.parts.append((module, partial(_norm, module, module.forward)))
                elif _is_gated(module):
                    self.parts.append((module, partial(_gated, module)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, their forwards are the one operation."""
        with replaced(self.parts):
            yield


def _unhooked(module: torch.nn.Module) -> bool:
    return not ("forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _is_norm(module: Any) -> bool:
    """Whether a module is weight * x / rms(x) in float32, and has nothing else."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, torch.nn.Parameter) or weight.dim() != 1 or weight.dtype != torch.float32 or not isinstance(epsilon, float):
        return False
    if len(list(module.parameters())) != 1 or list(module.children()) or not _unhooked(module) or weight.requires_grad or weight.is_meta:
        return False
    trial = torch.linspace(-2, 3, 3 * len(weight), device=weight.device).reshape(1, 3, -1)
    try:
        found = module(trial)
        expected = functional.rms_norm(trial, weight.shape, weight, epsilon)
        return isinstance(found, torch.Tensor) and bool(torch.allclose(found, expected, CLOSE, CLOSE))
    except NOT_APART:
        return False


def _is_gated(module: Any) -> bool:
    """Whether a module is down(silu(gate(x)) * up(x)) as the plain decoders have it."""
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
    from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

    silu = type(getattr(module, "act_fn", None)) in (torch.nn.SiLU, _silu_of_transformers())
    return type(module) in (LlamaMLP, Qwen2MLP, Qwen3MLP) and silu and _unhooked(module)


def _silu_of_transformers() -> type:
    from transformers.activations import ACT2FN

    found: type = type(ACT2FN["silu"])
    return found


def _norm(module: Any, own: Callable[..., torch.Tensor], x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
    if more or named or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):  # some have a gate besides
        return own(x, *more, **named)
    y: torch.Tensor = _RMSNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return y


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    inner: torch.Tensor = _GatedProduct.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    out: torch.Tensor = module.down_proj(inner)
    return out


class _RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + epsilon), over the last dimension D; w (D) is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        inner = slopes[0] * weight
        # d/dx of x r, r = (mean(x^2) + e)^(-1/2): r g - x r^3 mean(g x)
        along = torch.linalg.vecdot(inner, x).unsqueeze(-1).mul_(inverse.pow(3)).div_(x.shape[-1])
        return inner.mul_(inverse).addcmul_(x, along, value=-1), None, None


class _GatedProduct(torch.autograd.Function):
    """y = silu(a) b, elementwise."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return functional.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope,) = slopes
        a, b = ctx.saved_tensors
        inner = functional.silu(a)
        db = slope * inner
        da = torch.ops.aten.silu_backward(slope * b, a)
        return da, db
