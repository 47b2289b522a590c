"""One layer of a plain decoder over packed tokens, forward and back: its products and the little between them, with the gradients written out.

Projections of the same input are one product, with their LoRAs, of which B alone learns. What the backward pass needs is put on a list
that grows forward and is taken from its end going back; what was not kept is computed again there, in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F

from lawf_repl.engine.layout import joint
from lawf_repl.engine.products import FrozenLinear, product_of
from lawf_repl.learn.fused import is_plain_lora
from lawf_repl.learn.packed import Packed

Seen = Callable[[Any, torch.Tensor, torch.Tensor], None]  # a module, its inputs (P, I) and outputs (P, O)
Gradients = list[torch.Tensor]


class Recompute(IntEnum):
    """What of a layer is computed again in the backward pass, because it was not kept: each more than the one before, and for more time a byte."""

    NOTHING = 0
    ATTENTION = 1  # projections and what becomes of them, up to what attention gives: more than half of what is kept, a third of the time
    INSIDE = 2     # and the MLP's wide part
    WHOLE = 3      # all behind its input


class Otherwise(Exception):
    """A layer is built in another way than what is written out here."""


class Layer:
    """One decoder layer: attention and MLP, each behind a norm and added to what it was given."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width: int = attention.head_dim
        self._scale: float = attention.scaling
        self._project = Group(attention.q_proj, attention.k_proj, attention.v_proj)
        self._give, self._widen, self._narrow = Group(attention.o_proj), Group(mlp.gate_proj, mlp.up_proj), Group(mlp.down_proj)
        self.groups = [self._project, self._give, self._widen, self._narrow]
        self._heads, self._values = (int(module.out_features) // self.width for module in (attention.q_proj, attention.v_proj))
        self._inner = int(mlp.gate_proj.out_features)
        if type(mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            raise Otherwise
        self._norm, self._behind = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self._head_norm = None
        if hasattr(attention, "q_norm"):
            weights = [norm.weight.detach().expand(count, -1) for norm, count in ((attention.q_norm, self._heads), (attention.k_norm, self._values))]
            self._head_norm = Norm(attention.q_norm, torch.cat(weights))
        self._hidden = int(layer.input_layernorm.weight.shape[0])

    def keeps(self, again: Recompute) -> int:
        """Numbers of a token that are kept for the backward pass, where so much is computed again."""
        if again is Recompute.WHOLE:
            return self._hidden
        kept = 2 * self._hidden + self._give.rank + self._narrow.rank  # the norms'
        if again < Recompute.INSIDE:
            kept += 2 * self._inner + self._widen.rank
        if again < Recompute.ATTENTION:  # what attention takes and gives, and queries and keys before they are turned
            kept += self._project.rank + (2 * self._heads + 2 * self._values) * self.width
            kept += (self._heads + self._values) * self.width if self._head_norm is not None else 0
        return kept

    def __call__(self, x: torch.Tensor, packed: Packed, kept: list[Any] | None = None, chosen: torch.Tensor | None = None,
                 see: Seen | None = None, again: Recompute = Recompute.NOTHING) -> torch.Tensor:
        """What the layer makes of x (P, H), of the `chosen` tokens alone where they are given (N, H); what is computed `again` is not kept."""
        seen = self._look(self._norm(x, kept), packed, kept if again < Recompute.ATTENTION else None, see)
        if chosen is not None:
            seen, x = seen[chosen], x[chosen]
        x = self._give(seen, kept, see).add_(x)
        wide = self._wide(self._behind(x, kept), kept if again < Recompute.INSIDE else None, see)
        return self._narrow(F.silu(wide[:, :self._inner]).mul_(wide[:, self._inner:]), kept, see).add_(x)

    def back(self, slope: torch.Tensor, packed: Packed, kept: list[Any], chosen: torch.Tensor | None, lowest: bool,
             found: Gradients, again: Recompute = Recompute.NOTHING) -> torch.Tensor | None:
        """The gradient for x from that for what came out; the gradients of every B are put in front of `found`. None at the lowest layer."""
        inner = self._narrow.back(slope, kept, found)
        if again is Recompute.INSIDE:
            self._wide(self._behind.again(kept), kept)
        wide = kept.pop()
        gate, up = wide[:, :self._inner], wide[:, self._inner:]
        # of y = silu(a) b, with s = sigmoid(a): db = a s dy, da = b (s + a s (1 - s)) dy
        s = gate.sigmoid()
        act = gate * s
        widened = torch.empty_like(wide)
        torch.mul(inner, act, out=widened[:, self._inner:])
        torch.mul(torch.addcmul(s, act, 1 - s), up, out=widened[:, :self._inner]).mul_(inner)
        slope = self._behind.back(self._widen.back(widened, kept, found), kept).add_(slope)
        seen = self._give.back(slope, kept, found)
        if chosen is not None:  # a token predicts one at most
            seen, slope = (part.new_zeros(len(packed.states), part.shape[1]).index_copy_(0, chosen, part) for part in (seen, slope))
        if again in (Recompute.ATTENTION, Recompute.INSIDE):
            self._look(self._norm.again(kept), packed, kept)
        made = self._attend_back(seen, packed, kept)
        values = self._values * self.width
        turned = _turn_back(made[:, :-values].unflatten(-1, (-1, self.width)), packed.cos, packed.sin)
        if self._head_norm is not None:
            turned = self._head_norm.back(turned, kept)
        below = self._project.back(torch.cat((turned.flatten(1), made[:, -values:]), 1), kept, found, not lowest)
        return None if lowest else self._norm.back(below, kept).add_(slope)

    def _look(self, x: torch.Tensor, packed: Packed, kept: list[Any] | None, see: Seen | None = None) -> torch.Tensor:
        """What every token sees of itself and of those before it (P, heads D), from normed states (P, H)."""
        values = self._values * self.width
        made = self._project(x, kept, see)  # (P, O)
        turned = made[:, :-values].unflatten(-1, (-1, self.width))  # queries and keys (P, heads + groups, D)
        if self._head_norm is not None:
            turned = self._head_norm(turned, kept)
        turned = _turn(turned, packed.cos, packed.sin)
        return self._attend(torch.cat((turned.flatten(1), made[:, -values:]), 1), packed, kept)

    def _wide(self, x: torch.Tensor, kept: list[Any] | None, see: Seen | None = None) -> torch.Tensor:
        """The MLP's two factors side by side (N, 2 I), from normed states (N, H)."""
        wide = self._widen(x, kept, see)
        if kept is not None:
            kept.append(wide)
        return wide

    def _attend(self, made: torch.Tensor, packed: Packed, kept: list[Any] | None) -> torch.Tensor:
        """Causal attention (P, heads D) of queries, keys and values side by side (P, O). What pads a text stands behind it, where nobody looks."""
        B, T = packed.shape
        whole = made if packed.places is None else made.new_zeros(B * T, made.shape[1]).index_copy_(0, packed.places, made)
        heads = whole.view(B, T, -1, self.width).transpose(1, 2)
        parts: Sequence[torch.Tensor] = heads.split_with_sizes((self._heads, self._values, self._values), 1)
        with torch.set_grad_enabled(kept is not None):
            if kept is not None:
                parts = [part.detach().requires_grad_() for part in parts]
            queries, keys, values = parts
            seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=self._scale,
                                                  enable_gqa=self._heads != self._values)  # (B, heads, T, D)
        if kept is not None:
            kept.append((parts, seen))
        flat = seen.detach().transpose(1, 2).reshape(B * T, -1)
        return flat if packed.places is None else flat[packed.places]

    def _attend_back(self, slope: torch.Tensor, packed: Packed, kept: list[Any]) -> torch.Tensor:
        """The gradient (P, O) of queries, keys and values from that of what came out (P, heads D)."""
        parts, seen = kept.pop()
        B, T = packed.shape
        if packed.places is not None:
            slope = slope.new_zeros(B * T, slope.shape[1]).index_copy_(0, packed.places, slope)
        found = torch.autograd.grad(seen, parts, slope.view(B, T, -1, self.width).transpose(1, 2))
        flat = torch.cat([part.transpose(1, 2).reshape(B * T, -1) for part in found], 1)
        return flat if packed.places is None else flat[packed.places]


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotary embedding (Su et al. 2021) of heads (P, heads, D)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _turn_back(slope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Its transpose: turned the other way."""
    return torch.addcmul(slope * cos, slope.roll(slope.shape[-1] // 2, -1), sin, value=-1)


class Norm:
    """An RMS norm over the last dimension (Zhang and Sennrich 2019), w x / sqrt(mean(x^2) + epsilon), w frozen."""

    def __init__(self, module: Any, weight: torch.Tensor | None = None) -> None:
        self._weight: torch.Tensor = module.weight.detach() if weight is None else weight
        self._size, self._epsilon = self._weight.shape[-1], float(module.variance_epsilon)

    def __call__(self, x: torch.Tensor, kept: list[Any] | None) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(self._size).add_(self._epsilon).rsqrt_()  # (..., 1)
        unit: torch.Tensor = x * inverse
        if kept is None:
            return unit.mul_(self._weight)
        kept.append((unit, inverse))
        return unit * self._weight

    def again(self, kept: list[Any]) -> torch.Tensor:
        """What was made where the latest of `kept` is from."""
        unit: torch.Tensor = kept[-1][0]
        return unit * self._weight

    def back(self, slope: torch.Tensor, kept: list[Any]) -> torch.Tensor:
        """With u = x / rms(x) and g the gradient for u: (g - u mean(g u)) / rms(x)."""
        unit, inverse = kept.pop()
        inner = slope * self._weight
        along = torch.linalg.vecdot(inner, unit).unsqueeze(-1).div_(-self._size)
        return inner.addcmul_(unit, along).mul_(inverse)


class Group:
    """Linear layers of the same input as one, y = x W' + s (x A') B' + bias, B block by block; each has a LoRA or none has."""

    def __init__(self, *modules: Any) -> None:
        with_lora = [hasattr(module, "lora_A") for module in modules]
        if any(with_lora) != all(with_lora) or (any(with_lora) and not all(map(is_plain_lora, modules))):
            raise Otherwise
        bases = [module.base_layer if any(with_lora) else module for module in modules]
        if not all(type(base) in (torch.nn.Linear, FrozenLinear) for base in bases):
            raise Otherwise
        weight = joint(bases)
        if weight is None:
            raise Otherwise
        self._weight, self._made = weight, product_of(bases[0])  # (O, I), and how products with it are made
        biases = [base.bias for base in bases]
        if any(bias is None for bias in biases) != all(bias is None for bias in biases):
            raise Otherwise
        self._bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.modules = modules
        self._loras: list[tuple[Any, Any]] = []
        if any(with_lora):
            self._loras = [(module.lora_A[name], module.lora_B[name]) for module in modules for name in list(module.lora_A)]
            scales = {float(scale) for module in modules for scale in module.scaling.values()}
            if len(scales) != 1 or len(self._loras) != len(modules):
                raise Otherwise
            self._scale = scales.pop()
        self._sizes = [int(base.out_features) for base in bases]
        self.rank = sum(len(a.weight) for a, _ in self._loras)

    def works(self) -> bool:
        """Whether the modules do what they did when this was made, and neither A nor a base learns."""
        if any(module.merged for module in self.modules if self._loras):
            return False
        return not torch.is_grad_enabled() or not (self._off or any(a.weight.requires_grad for a, _ in self._loras))

    @property
    def _off(self) -> bool:
        """Whether the adapter is: that is all of it, at any one time."""
        return bool(self._loras) and bool(self.modules[0].disable_adapters)

    def outward(self) -> list[torch.Tensor]:
        """The matrix B (O, r) of each layer."""
        return [b.weight for _, b in self._loras]

    def __call__(self, x: torch.Tensor, kept: list[Any] | None, see: Seen | None = None) -> torch.Tensor:
        y = self._made(x, self._weight, self._bias)
        if self._loras and not self._off:
            self._adapt(x, y, kept)
        if self._loras and see is not None:
            for module, own in zip(self.modules, y.split_with_sizes(self._sizes, 1), strict=True):
                see(module, x, own)
        return y

    def _adapt(self, x: torch.Tensor, y: torch.Tensor, kept: list[Any] | None) -> None:
        """Add to y what the LoRAs make of x."""
        # The few rows come first in each of these products: the other way round MKL takes up to six times as long.
        a = self._inward()  # (all r, I)
        b = torch.block_diag(*(one.weight.detach().t() for _, one in self._loras))  # (all r, O)
        inner = a @ x.t()  # (all r, P)
        if kept is not None:
            kept.append((a, b, inner))
        y.addmm_(inner.t(), b, alpha=self._scale)

    def back(self, slope: torch.Tensor, kept: list[Any], found: Gradients, below: bool = True) -> torch.Tensor:
        """The gradient (P, I) for x from that for y (P, O), unless nothing `below` wants it; those of every B are put in front of `found`."""
        if not self._loras:
            return self._made(slope, self._weight.t(), None) if below else slope
        a, b, inner = kept.pop()
        outward = (inner @ slope).mul_(self._scale)  # (all r, O)
        own, row, column = [], 0, 0
        for _, one in self._loras:
            rows, rank = one.weight.shape
            own.append(outward[column:column + rank, row:row + rows].t().contiguous())
            row, column = row + rows, column + rank
        found[:0] = own
        return self._made(slope, self._weight.t(), None).addmm_((b @ slope.t()).t(), a, alpha=self._scale) if below else slope

    def _inward(self) -> torch.Tensor:
        return torch.cat([a.weight.detach() for a, _ in self._loras]) if len(self._loras) > 1 else self._loras[0][0].weight.detach()
