"""One token through a plain decoder in float32 on a CPU, in as few operations as there are.

Beside the products with its matrices a layer is a dozen small operations, of which each takes longer to call than to compute. So
states are vectors here, queries and keys are turned as one, and nothing is checked that was decided before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from lawf_repl.engine.layout import joint
from lawf_repl.engine.products import FrozenLinear, of_vector, product_of
from lawf_repl.engine.roomy import RoomyLayer

Vector = torch.Tensor
Onto = Callable[[Vector, Vector], Vector]  # x (I) and y (O) to y + what a layer makes of x
TINY = 1e-38  # mean square of a state of zeros, where the model adds no epsilon


def can_be_single(model: Any) -> bool:
    """Whether all its weights are of a kind that this is for."""
    return all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in model.parameters())


class SingleLayer:
    """What one decoder layer does to one token."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm, self._behind = vector_norm(layer.input_layernorm), vector_norm(layer.post_attention_layernorm)
        self._project = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
        self._widen = _side_by_side(mlp.gate_proj, mlp.up_proj)
        self._give, self._narrow = _onto(attention.o_proj), _onto(mlp.down_proj)
        # the module's own checks cost more than what it computes
        self._act: Any = partial(F.silu, inplace=True) if type(mlp.act_fn) in (nn.SiLU, type(ACT2FN["silu"])) else mlp.act_fn
        self._scale: float = attention.scaling
        self._width: int = attention.head_dim
        self._values = int(attention.v_proj.out_features)
        self._heads = int(attention.q_proj.out_features) // self._width
        self._inner = int(mlp.gate_proj.out_features)
        self._head_norm = _head_norm(attention, self._heads, self._values // self._width) if hasattr(attention, "q_norm") else None

    def __call__(self, x: Vector, cache: RoomyLayer, cos: torch.Tensor, sin: torch.Tensor) -> Vector:
        """The layer's answer (H) to x (H), whose key and value then stand in the cache. Cosines and signed sines are (1, D)."""
        made = self._project(self._norm(x))
        both = made[:-self._values].view(-1, self._width)  # (heads + groups, D)
        if self._head_norm is not None:
            both = self._head_norm(both)
        both = torch.addcmul(both * cos, both.view(-1, 2, self._width // 2).flip(1).view(-1, self._width), sin)  # rotary embedding (Su et al. 2021)
        keys, values = cache.append(both[self._heads:], made[-self._values:].view(-1, self._width))
        queries = both[:self._heads].view(1, self._heads, 1, self._width)
        seen = F.scaled_dot_product_attention(queries, keys, values, scale=self._scale, enable_gqa=True)  # (1, heads, 1, D)
        x = self._give(seen.reshape(-1), x)
        wide = self._widen(self._behind(x))
        return self._narrow(self._act(wide[:self._inner]).mul_(wide[self._inner:]), x)


def vector_norm(module: Any) -> Callable[[Vector], Vector]:
    """An RMS norm of one vector (Zhang and Sennrich 2019): a dot product and one operation more."""
    weight, epsilon, size, zero = module.weight, module.variance_epsilon, len(module.weight), torch.zeros(1)

    def norm(x: Vector) -> Vector:
        return torch.addcmul(zero, x, weight, value=max(torch.dot(x, x).item() / size + epsilon, TINY) ** -0.5)
    return norm


def _head_norm(attention: Any, heads: int, groups: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The norms of queries and keys (heads + groups, D) as one: of x beside -x the mean is 0, and the variance is the mean square of x."""
    width = len(attention.q_norm.weight)
    weights = torch.cat((attention.q_norm.weight.detach().expand(heads, -1), attention.k_norm.weight.detach().expand(groups, -1)))
    shape, epsilon = (2 * width,), attention.q_norm.variance_epsilon

    def norm(both: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(torch.cat((both, both.neg()), -1), shape, None, None, epsilon)[:, :width] * weights
    return norm


def _side_by_side(*modules: Any) -> Callable[[Vector], Vector]:
    """What linear layers make of the same input, one behind the other; one product where their weights are one tensor."""
    if all(type(module) in (nn.Linear, FrozenLinear) and module.bias is None for module in modules) and (whole := joint(modules)) is not None:
        return _product(modules[0], whole)
    parts = [_product(module, module.weight) for module in modules]
    return lambda x: torch.cat([part(x) for part in parts])


def _product(module: Any, weight: torch.Tensor) -> Callable[[Vector], Vector]:
    """What a linear layer, of which this is the weight, makes of a vector; one with a LoRA, or with anything else to it, computes itself."""
    if type(module) is FrozenLinear and getattr(module, "bias", None) is None:
        return of_vector(weight.detach())
    if type(module) in (nn.Linear, FrozenLinear):
        made, bias = product_of(module), module.bias
        return lambda x: made(x[None], weight, bias)[0]
    return lambda x: cast(Vector, module(x[None])[0])


def _onto(module: Any) -> Onto:
    """A linear layer whose product is added to something."""
    made = _product(module, module.weight)  # peft's layers have it, too
    return lambda x, y: made(x).add_(y)
