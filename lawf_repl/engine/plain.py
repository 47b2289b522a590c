"""A step of a plain decoder without the library's ceremony: what each layer computes, and nothing around it.

The forward of transformers builds masks, positions, output objects and argument lists for every token, which takes as long
as a small model's arithmetic. The decoders here are all built alike, so a few tokens behind a cache are computed from the
model's own modules directly. Everything that is not exactly such a model goes through its own forward, as does a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from lawf_repl.engine.roomy import RoomyLayer

Step = Callable[[torch.Tensor], torch.Tensor]
FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
ROTATIONS = ("default", "linear", "llama3")  # whose angles do not depend on the length of the text
FEW = 16  # tokens; from there on the ceremony costs nothing


def is_plain(model: Any) -> bool:
    """Whether the model is of a family that `PlainSteps` knows, in all that could make it compute something else."""
    if type(model) not in FAMILY or model.config._attn_implementation != "sdpa":
        return False
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return kinds == {"full_attention"} and rotation in ROTATIONS and not getattr(model, "is_quantized", False)


class PlainSteps:
    """The modules of a plain decoder as they are now: `stands` says whether they still are, an adapter may come or go."""

    def __init__(self, model: Any) -> None:
        decoder = model.model
        modules = list(model.modules())
        self._children = [(module._modules, list(module._modules.values())) for module in modules if module._modules]
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._own = [vars(module) for module in modules]
        self._embedding: torch.Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._norm, self._head = _norm(decoder.norm), _projection(model.lm_head)
        self._layers = [(_norm(layer.input_layernorm), _projection(attention.q_proj), _projection(attention.k_proj), _projection(attention.v_proj),
                         *(_norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")),
                         attention.scaling, _projection(attention.o_proj), _norm(layer.post_attention_layernorm),
                         _projection(layer.mlp.gate_proj), _projection(layer.mlp.up_proj), layer.mlp.act_fn, _projection(layer.mlp.down_proj))
                        for layer in decoder.layers for attention in (layer.self_attn,)]
        self._width: int = decoder.layers[0].self_attn.head_dim
        self._cos = self._sin = torch.empty(0)  # (positions, 1, D)

    def stands(self) -> bool:
        """Whether every module is the one it was, and none has a hook, or a forward of its own, that must not be passed by."""
        return not any(self._hooks) and not any("forward" in own for own in self._own) and all(
            list(now.values()) == then for now, then in self._children)

    def __call__(self, ids: list[int], keep: int, cache: DynamicCache) -> torch.Tensor:
        """Logits (keep, V) of the last `keep` of `ids` (n, few) behind what is in `cache`, which has them then too."""
        layers = cast(list[RoomyLayer], cache.layers)
        start, n = layers[0].get_seq_length(), len(ids)
        weight, width = self._embedding, self._width
        cos, sin = self._angles(start, n)
        # every new token sees the cached ones and the new ones up to itself
        mask = torch.ones(n, start + n, dtype=torch.bool, device=weight.device).tril(start) if n > 1 else None
        x = weight[ids[0]][None] if n == 1 else F.embedding(torch.tensor(ids, device=weight.device), weight)  # (n, H)
        for (norm, q_proj, k_proj, v_proj, q_norm, k_norm, scale, o_proj, behind, gate, up, act, down), layer in zip(
                self._layers, layers, strict=True):
            h = norm(x)
            q, k, v = q_proj(h).view(n, -1, width), k_proj(h).view(n, -1, width), v_proj(h).view(n, -1, width)  # (n, heads, D)
            if q_norm is not None and k_norm is not None:
                q, k = q_norm(q), k_norm(k)
            heads = q.shape[1]
            both = torch.cat((q, k), 1)
            both = torch.addcmul(both * cos, both.roll(width // 2, -1), sin).transpose(0, 1)[None]  # rotary embedding (Su et al. 2021)
            keys, values = layer.update(both[:, heads:], v.transpose(0, 1)[None])
            seen = F.scaled_dot_product_attention(both[:, :heads], keys, values, attn_mask=mask, scale=scale, enable_gqa=True)  # (1, heads, n, D)
            x = x + o_proj(seen[0].transpose(0, 1).reshape(n, -1))
            h = behind(x)
            x = x + down(act(gate(h)) * up(h))
        return self._head(self._norm(x[n - keep:]))

    def _angles(self, start: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (n, 1, D) for positions from `start` on; the sines with the sign that half of them is used with."""
        if start + n > len(self._cos):
            places = torch.arange(start + n + 256, device=self._embedding.device)[None]
            cos, sin = self._rotary(self._embedding, places)  # (1, positions, D)
            sin = torch.cat((-sin[..., :self._width // 2], sin[..., self._width // 2:]), -1)
            self._cos, self._sin = cos[0, :, None], sin[0, :, None]
        return self._cos[start:start + n], self._sin[start:start + n]


def _projection(module: Any) -> Step:
    """A linear layer as a function; one with a LoRA, or with anything else to it, computes itself."""
    if type(module) is not nn.Linear:
        return cast(Step, module)
    weight, bias = module.weight, module.bias
    return lambda x: F.linear(x, weight, bias)


def _norm(module: Any) -> Step:
    """An RMS norm as a function (Zhang and Sennrich 2019); in half precision the module itself, which rounds at a place of its own."""
    weight, epsilon = module.weight, module.variance_epsilon
    if weight.dtype != torch.float32:
        return cast(Step, module)
    if weight.device.type != "cpu":
        return lambda x: torch.rms_norm(x, weight.shape, weight, epsilon)
    # On a CPU it is half a dozen small operations, where layer_norm is one. Of x beside -x the mean is 0, and the variance is the mean square of x.
    size = len(weight)
    twice, shape = torch.cat((weight, weight)), (2 * size,)
    return lambda x: F.layer_norm(torch.cat((x, x.neg()), -1), shape, twice, None, epsilon)[..., :size]
