"""A step of a plain decoder without the library's ceremony: what each layer computes, and nothing around it.

The forward of transformers builds masks, positions, output objects and argument lists for every token, which takes as long
as a small model's arithmetic. The decoders here are all built alike, so a few tokens behind a cache are computed from the
model's own modules directly. Everything that is not exactly such a model goes through its own forward, as does a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import contains
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from lawf_repl.engine.layout import joint
from lawf_repl.engine.native_layers import Ending, NativeLayers
from lawf_repl.engine.products import FrozenLinear, product_of
from lawf_repl.engine.roomy import RoomyLayer
from lawf_repl.engine.single import SingleLayer, can_be_single, vector_norm

Step = Callable[[torch.Tensor], torch.Tensor]
Attend = Callable[[RoomyLayer, torch.Tensor, torch.Tensor, int, float], torch.Tensor]  # its cache, queries and keys (n, heads + groups, D), values
#                                                                (n, groups, D), heads, the scale: to what each token sees (n, heads D)
FEW = 16  # tokens; from there on the ceremony costs nothing
# Tokens that are taken one by one where that is compiled: MKL's products with 2 to 16 vectors all take as long as five with one (AMD EPYC of 2021).
ONE_BY_ONE = 4


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
        self._norm, self.head = _norm(decoder.norm), _projection(model.lm_head)
        self._layers = [(_norm(layer.input_layernorm), _projections(attention.q_proj, attention.k_proj, attention.v_proj),
                         *(_norm(getattr(attention, name)) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")),
                         attention.scaling, _projection(attention.o_proj), _norm(layer.post_attention_layernorm),
                         _projections(layer.mlp.gate_proj, layer.mlp.up_proj), layer.mlp.act_fn, _projection(layer.mlp.down_proj))
                        for layer in decoder.layers for attention in (layer.self_attn,)]
        self._width: int = decoder.layers[0].self_attn.head_dim
        self._cos = self._sin = torch.empty(0)  # (positions, 1, D)
        self._single = [SingleLayer(layer) for layer in decoder.layers] if can_be_single(model) else []
        self._compiled, self._ending = _compiled(model) if self._single else (None, None)
        self._last = vector_norm(decoder.norm)

    def stands(self) -> bool:
        """Whether every module is the one it was, and none has a hook, or a forward of its own, that must not be passed by."""
        return not any(self._hooks) and not any(map(contains, self._own, repeat("forward"))) and all(
            list(now.values()) == then for now, then in self._children) and all(
            compiled is None or compiled.stands() for compiled in (self._compiled, self._ending))

    def __call__(self, ids: list[int], cache: DynamicCache) -> torch.Tensor:
        """Final hidden states (n, H) of `ids` (n, few) behind what is in `cache`, which has them then too; `head` makes logits (n, V) of them."""
        layers = cast(list[RoomyLayer], cache.layers)
        start, n = layers[0].get_seq_length(), len(ids)
        weight = self._embedding
        self._make_angles(start + n)
        if n == 1 and self._single:
            x, cos, sin = weight[ids[0]], self._cos[start], self._sin[start]
            if self._compiled is not None and self._compiled.ready():
                return self._last(self._compiled(x, layers, cos, sin))[None]
            for single, layer in zip(self._single, layers, strict=True):
                x = single(x, layer, cos, sin)
            return self._last(x)[None]
        cos, sin = self._cos[start:start + n], self._sin[start:start + n]
        # every new token sees the cached ones and the new ones up to itself
        mask = torch.ones(n, start + n, dtype=torch.bool, device=weight.device).tril(start) if n > 1 else None
        x = weight[ids[0]][None] if n == 1 else F.embedding(torch.tensor(ids, device=weight.device), weight)  # (n, H)

        def attend(layer: RoomyLayer, both: torch.Tensor, v: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
            both = both.transpose(0, 1)[None]  # (1, heads + groups, n, D)
            keys, values = layer.update(both[:, heads:], v.transpose(0, 1)[None])
            seen = F.scaled_dot_product_attention(both[:, :heads], keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
            return seen[0].transpose(0, 1).reshape(n, -1)
        return self._through(x, layers, cos, sin, attend)

    def logits(self, ids: list[int], cache: DynamicCache, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the logits (keep, V) of the last `keep` of them."""
        if not 0 < keep <= len(ids) <= ONE_BY_ONE or self._compiled is None or self._ending is None or not self._compiled.ready():
            finals = self(ids, cache)
            return finals, self.head(finals[len(ids) - keep:])
        layers = cast(list[RoomyLayer], cache.layers)
        start = layers[0].get_seq_length()
        self._make_angles(start + len(ids))
        before = [self([id_], cache)[0] for id_ in ids[:len(ids) - keep]]
        found = [self._compiled.through(self._ending, self._embedding[id_], layers, self._cos[place], self._sin[place])
                 for place, id_ in enumerate(ids[len(before):], start + len(before))]
        if not before and len(found) == 1:
            return found[0][0][None], found[0][1][None]
        return torch.stack([*before, *(final for final, _ in found)]), torch.stack([logits for _, logits in found])

    def rows(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Final hidden states (B, H) of one more token `ids` (B,) behind each of the texts in `cache`, all of one length; it has them then too."""
        layers = cast(list[RoomyLayer], cache.layers)
        start = layers[0].get_seq_length()
        self._make_angles(start + 1)
        cos, sin = self._cos[start:start + 1], self._sin[start:start + 1]

        def attend(layer: RoomyLayer, both: torch.Tensor, v: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
            keys, values = layer.update(both[:, heads:, None], v[:, :, None])  # (B, groups, T, D)
            return F.scaled_dot_product_attention(both[:, :heads, None], keys, values, scale=scale, enable_gqa=True).reshape(len(ids), -1)
        return self._through(F.embedding(ids, self._embedding), layers, cos, sin, attend)

    def _through(self, x: torch.Tensor, cached: Sequence[RoomyLayer], cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Final hidden states (n, H) of tokens with embeddings x (n, H)."""
        n, width = len(x), self._width
        for (norm, project, q_norm, k_norm, scale, o_proj, behind, widen, act, down), layer in zip(self._layers, cached, strict=True):
            q, k, v = (part.reshape(n, -1, width) for part in project(norm(x)))  # (n, heads, D)
            if q_norm is not None and k_norm is not None:
                q, k = q_norm(q), k_norm(k)
            both = torch.cat((q, k), 1)
            both = torch.addcmul(both * cos, both.roll(width // 2, -1), sin)  # rotary embedding (Su et al. 2021)
            x = x + o_proj(attend(layer, both, v, q.shape[1], scale))
            gate, up = widen(behind(x))
            x = x + down(act(gate) * up)
        return self._norm(x)

    def _make_angles(self, stop: int) -> None:
        """Have cosines and sines for the positions before `stop`; the sines with the sign that half of them is used with."""
        if stop > len(self._cos):
            places = torch.arange(stop + 256, device=self._embedding.device)[None]
            cos, sin = self._rotary(self._embedding, places)  # (1, positions, D)
            sin = torch.cat((-sin[..., :self._width // 2], sin[..., self._width // 2:]), -1)
            self._cos, self._sin = cos[0, :, None].contiguous(), sin[0, :, None].contiguous()


def _compiled(model: Any) -> tuple[NativeLayers | None, Ending | None]:
    """A model's layers and their ending as compiled functions; None where there is nothing compiled, or they are of another kind."""
    try:
        layers = NativeLayers(model.model.layers)
    except ValueError:
        return None, None
    try:
        return layers, Ending(model.model.norm, model.lm_head)
    except ValueError:
        return layers, None


def _projections(*modules: Any) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """Linear layers of the same input as one function; one product where their weights are one tensor."""
    whole = joint(modules) if all(type(module) in (nn.Linear, FrozenLinear) and module.bias is None for module in modules) else None
    if whole is None:
        parts = [_projection(module) for module in modules]
        return lambda x: [part(x) for part in parts]
    sizes = [module.out_features for module in modules]
    made = product_of(modules[0])
    return lambda x: made(x, whole, None).split_with_sizes(sizes, -1)


def _projection(module: Any) -> Step:
    """A linear layer as a function; one with a LoRA, or with anything else to it, computes itself."""
    if type(module) not in (nn.Linear, FrozenLinear):
        return cast(Step, module)
    made, weight, bias = product_of(module), module.weight, module.bias
    return lambda x: made(x, weight, bias)


def _norm(module: Any) -> Step:
    """An RMS norm as a function (Zhang and Sennrich 2019); in half precision the module itself, which rounds at a place of its own."""
    weight, epsilon = module.weight, module.variance_epsilon
    if weight.dtype != torch.float32:
        return cast(Step, module)
    if weight.device.type != "cpu":
        return lambda x: torch.rms_norm(x, weight.shape, weight, epsilon)
    # On a CPU it is half a dozen small operations, and layer_norm is one: of x beside -x the mean is 0, and the variance is the mean square of x.
    twice, shape = torch.cat((weight, weight)), (2 * len(weight),)
    return lambda x: F.layer_norm(torch.cat((x, x.neg()), -1), shape, twice, None, epsilon)[..., :len(weight)]
