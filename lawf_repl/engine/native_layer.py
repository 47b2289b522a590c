"""A decoder layer on one token in one call of what is compiled, with the LoRA that may be on it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from lawf_repl.engine import native
from lawf_repl.engine.layout import joint
from lawf_repl.engine.native import COUNT, POINTER
from lawf_repl.engine.products import FrozenLinear
from lawf_repl.engine.roomy import RoomyLayer

SingleStep = Callable[[torch.Tensor, RoomyLayer, torch.Tensor, torch.Tensor], torch.Tensor]
PROJECTIONS = 7  # queries, keys, values, output, gate, up, down
REAL = ctypes.c_float


class Low(ctypes.Structure):
    """`struct low` of native.c."""

    _fields_ = (("a", POINTER), ("b", POINTER), ("rank", COUNT), ("scale", REAL))


class Layer(ctypes.Structure):
    """`struct layer` of native.c."""

    _fields_ = (*((name, POINTER) for name in ("before", "behind", "project", "give", "widen", "narrow")),
                ("bias", POINTER * PROJECTIONS), ("low", Low * PROJECTIONS), ("query_norm", POINTER), ("key_norm", POINTER),
                *((name, REAL) for name in ("before_epsilon", "behind_epsilon", "query_epsilon", "key_epsilon", "scale")),
                *((name, COUNT) for name in ("hidden", "width", "heads", "groups", "inner")))


class Token(ctypes.Structure):
    """`struct token` of native.c."""

    _fields_ = (*((name, POINTER) for name in ("x", "cosines", "sines", "y", "keys", "values")), ("room", COUNT), ("length", COUNT))


class NativeLayer:
    """What one decoder layer does to one token; `otherwise` does it where the LoRA is in a state that is not for it."""

    def __init__(self, layer: Any, otherwise: SingleStep) -> None:
        """Raises ValueError where the layer is not one that native.c computes."""
        attention, mlp = layer.self_attn, layer.mlp
        modules = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._otherwise = otherwise
        linear = [_base(module) for module in modules]
        norms = [layer.input_layernorm, layer.post_attention_layernorm, *(getattr(attention, name, None) for name in ("q_norm", "k_norm"))]
        weights = [joint(linear[:3]), linear[3].weight, joint(linear[4:6]), linear[6].weight]
        if type(mlp.act_fn) not in (nn.SiLU, type(ACT2FN["silu"])) or any(weight is None or not native.can_read(weight) for weight in weights):
            raise ValueError("another activation, or weights that lie in another way")
        self._loras = [(number, _Lora(module)) for number, module in enumerate(modules) if module is not linear[number]]
        biases = [module.bias for module in linear]
        # what is used by its address must not go away
        self._held = [tensor.detach() for tensor in (*weights, *biases, *(norm.weight for norm in norms if norm is not None)) if tensor is not None]
        if not all(native.can_read(tensor) for tensor in self._held):
            raise ValueError("another dtype or device")
        width = attention.head_dim
        self._groups, self._width = linear[1].out_features // width, width
        self._layer = Layer(
            *(norm.weight.data_ptr() for norm in norms[:2]), *(weight.data_ptr() for weight in weights),
            (POINTER * PROJECTIONS)(*map(native.address, biases)), (Low * PROJECTIONS)(),
            *(native.address(getattr(norm, "weight", None)) for norm in norms[2:]), *(getattr(norm, "variance_epsilon", 0.0) for norm in norms),
            attention.scaling, linear[0].in_features, width, linear[0].out_features // width, self._groups, linear[4].out_features)
        self._token = Token()
        self._reference = ctypes.byref(self._layer)
        self._call = native.library().lawf_layer

    def __call__(self, x: torch.Tensor, cache: RoomyLayer, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The layer's answer (H) to x (H), whose key and value then stand in the cache. Cosines and signed sines are (1, D)."""
        for number, lora in self._loras:
            if not lora.fill(self._layer.low[number]):
                return self._otherwise(x, cache, cos, sin)
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        y = torch.empty_like(x)
        keys, values, length = cache.room_for_one(self._groups, self._width, x)
        token = Token(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), keys.data_ptr(), values.data_ptr(), keys.shape[-2], length)
        if not self._call(native.team(), self._reference, ctypes.byref(token)):
            raise torch.OutOfMemoryError("no memory for a layer's states")
        cache.grew_by_one()
        return y


class _Lora:
    """A linear layer with peft's LoRA on it, as it is now."""

    def __init__(self, module: Any) -> None:
        """Raises ValueError where it is of another kind than the plain one."""
        names = list(module.lora_A)
        if len(names) != 1 or module.lora_variant or module.lora_bias.get(names[0]):
            raise ValueError("a LoRA that adds something else than B A x")
        self._module, self._name = module, names[0]
        self._a, self._b = module.lora_A[self._name].weight, module.lora_B[self._name].weight

    def fill(self, low: Low) -> bool:
        """Say what it adds; False where that cannot be said in this way."""
        module = self._module
        if module._disable_adapters:
            low.rank = 0
            return not module.merged_adapters
        if module.merged_adapters or module.training or module._active_adapter not in (self._name, [self._name]) \
                or not (native.can_read(self._a) and native.can_read(self._b)):
            return False
        low.a, low.b, low.rank, low.scale = self._a.data_ptr(), self._b.data_ptr(), len(self._a), module.scaling[self._name]
        return True


def _base(module: Any) -> Any:
    """The plain linear layer that a module is, or carries a LoRA. Raises ValueError where it is something else."""
    if type(module) not in (nn.Linear, FrozenLinear):
        from peft.tuners.lora import Linear  # whoever has such a module has imported it

        if type(module) is not Linear or module.fan_in_fan_out:
            raise ValueError("another kind of layer")
        module = module.base_layer
    if type(module) not in (nn.Linear, FrozenLinear):
        raise ValueError("another kind of layer")
    return module
