"""A token through the layers of a plain decoder in one call of what is compiled, with the LoRA that may be on them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from lawf_repl.engine import native
from lawf_repl.engine.layout import joint
from lawf_repl.engine.native import COUNT, POINTER, REAL
from lawf_repl.engine.products import FrozenLinear
from lawf_repl.engine.roomy import RoomyLayer

PROJECTIONS = 7  # queries, keys, values, output, gate, up, down


class Low(ctypes.Structure):
    """`struct low` of native.c."""

    _fields_ = (("a", POINTER), ("b", POINTER), ("rank", COUNT), ("scale", REAL))


class Layer(ctypes.Structure):
    """`struct layer` of native.c."""

    _fields_ = (*((name, POINTER) for name in ("before", "behind", "project", "give", "widen", "narrow")),
                ("bias", POINTER * PROJECTIONS), ("low", Low * PROJECTIONS), ("query_norm", POINTER), ("key_norm", POINTER),
                *((name, REAL) for name in ("before_epsilon", "behind_epsilon", "query_epsilon", "key_epsilon", "scale")),
                *((name, COUNT) for name in ("hidden", "width", "heads", "groups", "inner")))


class Kept(ctypes.Structure):
    """`struct kept` of native.c."""

    _fields_ = (("keys", POINTER), ("values", POINTER), ("room", COUNT))


class Token(ctypes.Structure):
    """`struct token` of native.c."""

    _fields_ = (("x", POINTER), ("cosines", POINTER), ("sines", POINTER), ("length", COUNT), ("last", POINTER), ("head", POINTER),
                ("final", POINTER), ("logits", POINTER), ("hidden", COUNT), ("vocabulary", COUNT), ("last_epsilon", REAL))


class NativeLayers:
    """What decoder layers do to one token."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """Raises ValueError where one of them is not what native.c computes."""
        if not native.at_hand():
            raise ValueError("nothing is compiled here")
        self._layers = [_Described(layer) for layer in layers]
        self._adapted = [(one.struct.low[number], lora) for one in self._layers for number, lora in one.loras]
        self._pointers = (POINTER * len(layers))(*(ctypes.addressof(one.struct) for one in self._layers))
        self._kept = (Kept * len(layers))()
        self._call = native.library().lawf_layers

    def stands(self) -> bool:
        """Whether all numbers still stand where they stood: a parameter may have been replaced."""
        return all([_stand(one.places) for one in self._layers])

    def ready(self) -> bool:
        """Note what the LoRA on each layer adds now; whether that can be said in this way."""
        return all([lora.fill(low) for low, lora in self._adapted])

    def __call__(self, x: torch.Tensor, cached: Sequence[RoomyLayer], cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The layers' answer (H) to x (H), where they are `ready`; its keys and values then stand in the cache.

        Cosines and signed sines (D) lie without gaps.
        """
        x = x.clone()
        self._go(Token(x=x.data_ptr(), cosines=cos.data_ptr(), sines=sin.data_ptr()), cached, x)
        return x

    def through(self, ending: Ending, x: torch.Tensor, cached: Sequence[RoomyLayer], cos: torch.Tensor,
                sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and what the model's ending makes of it: the final hidden state (H) and the logits (V)."""
        x = x.clone()
        final, logits = torch.empty_like(x), x.new_empty(ending.vocabulary)
        self._go(Token(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), 0, ending.last, ending.head, final.data_ptr(), logits.data_ptr(),
                       len(x), ending.vocabulary, ending.epsilon), cached, x)
        return final, logits

    def _go(self, token: Token, cached: Sequence[RoomyLayer], x: torch.Tensor) -> None:
        token.length = cached[0].get_seq_length()
        for number, layer in enumerate(cached):
            one = self._layers[number]
            keys, values = layer.room_for_one(one.groups, one.width, x)
            self._kept[number] = Kept(keys.data_ptr(), values.data_ptr(), keys.shape[-2])
        if not self._call(native.team(), self._pointers, self._kept, ctypes.byref(token), len(self._layers)):
            raise torch.OutOfMemoryError("no memory for the states of a token")
        for layer in cached:
            layer.grew_by_one()


class Ending:
    """The norm behind a decoder's last layer, and its head."""

    def __init__(self, norm: Any, head: Any) -> None:
        """Raises ValueError where they are not what native.c computes."""
        if type(head) not in (nn.Linear, FrozenLinear) or getattr(head, "bias", None) is not None:
            raise ValueError("another kind of head")
        self._held = norm.weight.detach(), head.weight.detach()
        if not all(map(native.can_read, self._held)):
            raise ValueError("another dtype or device")
        self._places = _places(norm, head)
        self.last, self.head = int(norm.weight.data_ptr()), head.weight.data_ptr()
        self.vocabulary, self.epsilon = len(head.weight), float(norm.variance_epsilon)

    def stands(self) -> bool:
        """Whether their numbers still stand where they stood."""
        return _stand(self._places)


Places = list[tuple[dict[str, Any], str, int]]  # a module's parameters, the name of one, and where its numbers stood


def _places(*modules: Any) -> Places:
    return [(module._parameters, name, parameter.data_ptr()) for module in modules for name, parameter in module._parameters.items()
            if parameter is not None]


def _stand(places: Places) -> bool:
    return all([parameters[name].data_ptr() == place for parameters, name, place in places])


class _Described:
    """A decoder layer as native.c takes it; it holds what is used by its address."""

    def __init__(self, layer: Any) -> None:
        """Raises ValueError where the layer is not one that native.c computes."""
        attention, mlp = layer.self_attn, layer.mlp
        modules = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        linear = [_base(module) for module in modules]
        norms = [layer.input_layernorm, layer.post_attention_layernorm, *(getattr(attention, name, None) for name in ("q_norm", "k_norm"))]
        weights = [joint(linear[:3]), linear[3].weight, joint(linear[4:6]), linear[6].weight]
        biases = [module.bias for module in linear]
        if type(mlp.act_fn) not in (nn.SiLU, type(ACT2FN["silu"])) or any(weight is None for weight in weights):
            raise ValueError("another activation, or weights that lie in another way")
        self._held = [tensor.detach() for tensor in (*weights, *biases, *(norm.weight for norm in norms if norm is not None)) if tensor is not None]
        if not all(native.can_read(tensor) for tensor in self._held):
            raise ValueError("another dtype or device")
        self.loras = [(number, _Lora(module)) for number, module in enumerate(modules) if module is not linear[number]]
        self.places = _places(*linear, *(norm for norm in norms if norm is not None))
        self.width = int(attention.head_dim)
        self.groups = linear[1].out_features // self.width
        self.struct = Layer(
            *(norm.weight.data_ptr() for norm in norms[:2]), *(weight.data_ptr() for weight in weights),
            (POINTER * PROJECTIONS)(*map(native.address, biases)), (Low * PROJECTIONS)(),
            *(native.address(getattr(norm, "weight", None)) for norm in norms[2:]), *(getattr(norm, "variance_epsilon", 0.0) for norm in norms),
            attention.scaling, linear[0].in_features, self.width, linear[0].out_features // self.width, self.groups, linear[4].out_features)


class _Lora:
    """A linear layer with peft's LoRA on it, as it is now."""

    def __init__(self, module: Any) -> None:
        """Raises ValueError where it is of another kind than the plain one."""
        names = list(module.lora_A)
        if len(names) != 1 or module.lora_variant or module.lora_bias.get(names[0]):
            raise ValueError("a LoRA that adds something else than B A x")
        self._module, self._name = module, names[0]
        self._matrices = [matrices[self._name]._parameters for matrices in (module.lora_A, module.lora_B)]  # what is in them may be replaced

    def fill(self, low: Low) -> bool:
        """Say what it adds; False where that cannot be said in this way."""
        module = self._module
        if module._disable_adapters:
            low.rank = 0
            return not module.merged_adapters
        a, b = (parameters["weight"] for parameters in self._matrices)
        if module.merged_adapters or module.training or module._active_adapter not in (self._name, [self._name]) \
                or not (native.can_read(a) and native.can_read(b)):
            return False
        low.a, low.b, low.rank, low.scale = a.data_ptr(), b.data_ptr(), len(a), module.scaling[self._name]
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
