"""Layers of a plain decoder as one operation, forward and back, over the real tokens of a batch alone.

A step of a small model takes longer to call than to compute: hundreds of small operations, each through a module, a check and a
node of the graph. Here a layer is written out with its gradients (layer.py), and padding is there in attention only. Frozen weights get no
gradient, and the lowest layer none for its input.
What is computed is what the model's own modules say; before anything is trained by it, that is tried on the real model (lower.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from lawf_repl.engine.layout import is_plain
from lawf_repl.engine.reach import reach_of
from lawf_repl.learn.batch import Batch
from lawf_repl.learn.layer import Gradients, Group, Layer, Norm, Otherwise, Recompute, Seen
from lawf_repl.learn.packed import Packed


class Stack:
    """Layers of a decoder that follow each other, with the norm behind the last of all. `works` says whether the model is one that this is for.

    Several batches may be run at the same time, each in a thread of its own.
    """

    def __init__(self, model: Any, layers: Sequence[Any] | None = None) -> None:
        """`layers` of the model; all of them for None."""
        self.layers: list[Layer] = []
        self._groups: list[Group] = []
        if not is_plain(model) or model.device.type != "cpu" or reach_of(model) is not None:
            return
        layers = list(model.model.layers) if layers is None else layers
        if not layers:
            return
        decoder = model.model
        try:
            found = [Layer(layer) for layer in layers]
        except Otherwise:
            return
        numbers = [number for number, layer in enumerate(decoder.layers) if any(layer is one for one in layers)]
        if len(numbers) != len(layers) or numbers != list(range(numbers[0], numbers[0] + len(layers))) \
                or type(decoder.embed_tokens) is not torch.nn.Embedding or any(one.dtype != torch.float32 for one in decoder.parameters()):
            return
        self.layers, self._decoder = found, decoder
        self._norm = Norm(decoder.norm) if layers[-1] is decoder.layers[-1] else None
        self._groups = [group for layer in found for group in layer.groups]
        around = [decoder.embed_tokens, decoder.rotary_emb, decoder.norm, *(module for layer in layers for module in layer.modules())]
        self._hooks = [hooks for module in around for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._own = [vars(module) for module in around]

    @property
    def works(self) -> bool:
        """Whether it may be run as the modules are now: nothing looks on, and of the LoRAs B alone learns, or nothing does."""
        return bool(self.layers) and not any(self._hooks) and not any("forward" in own for own in self._own) \
            and all(group.works() for group in self._groups)

    def holds(self, loras: Iterable[Any]) -> bool:
        """Whether all of these layers with a LoRA are among those that are run here."""
        return {id(lora) for lora in loras} <= {id(module) for group in self._groups for module in group.modules}

    def kept(self, tokens: int) -> int:
        """Bytes that are kept for the backward pass of a batch of so many."""
        return int(4 * tokens * sum(layer.keeps(Recompute.NOTHING) for layer in self.layers))

    def pack(self, batch: Batch) -> Packed:
        """A batch with the embeddings of its tokens for states."""
        real = batch.mask.bool().reshape(-1)
        places = None if bool(real.all()) else real.nonzero()[:, 0]
        B, T = batch.ids.shape
        ids, columns = batch.ids.reshape(-1), torch.arange(T, device=real.device).repeat(B)
        chosen = batch.rows * T + batch.columns
        if places is not None:
            ids, columns = ids[places], columns[places]
            chosen = (real.cumsum(0) - 1)[chosen]
        flat = F.embedding(ids, self._decoder.embed_tokens.weight).detach()
        cos, sin = self._decoder.rotary_emb(flat[None], columns[None])  # (1, P, D)
        half = cos.shape[-1] // 2
        return Packed(flat, places, chosen, cos[0, :, None], torch.cat((-sin[0, :, None, :half], sin[0, :, None, half:]), -1), (B, T))

    def plan(self, tokens: int, room: float) -> list[Recompute]:
        """What each layer computes again in the backward pass of so many tokens, for what is kept to fit in `room` bytes: the lowest most.

        Nothing in the last, of which little is kept.
        """
        plan, over = [Recompute.NOTHING] * len(self.layers), self.kept(tokens) - room
        for step in (Recompute.ATTENTION, Recompute.INSIDE, Recompute.WHOLE):
            for number, layer in enumerate(self.layers[:-1]):
                if over <= 0:
                    return plan
                over -= 4 * tokens * (layer.keeps(plan[number]) - layer.keeps(step))
                plan[number] = step
        return plan

    def states(self, packed: Packed, room: float = math.inf) -> torch.Tensor:
        """Final hidden states (N, H) of the chosen tokens, with a gradient for every B where gradients are computed.

        Where the last layer is not the last of all, what it makes of every token (P, H). About as much as `room` in bytes is kept for the gradient.
        """
        if not torch.is_grad_enabled():
            return self._run(packed, None)
        plan = self.plan(len(packed.states), room)
        out: torch.Tensor = _Whole.apply(self, packed, plan, *(b for group in self._groups for b in group.outward()))  # type: ignore[no-untyped-call]
        return out

    @torch.no_grad()
    def watched(self, packed: Packed, see: Seen) -> torch.Tensor:
        """As `states`, without gradients; each module with a LoRA is shown to `see`, with its inputs and what it makes of them, of every token."""
        for layer in self.layers:
            packed = replace(packed, states=layer(packed.states, packed, see=see))
        return packed.states if self._norm is None else self._norm(packed.states[packed.chosen], None)

    def _run(self, packed: Packed, kept: list[Any] | None, plan: Sequence[Recompute] = ()) -> torch.Tensor:
        x = packed.states
        for layer, again in zip(self.layers, plan or [Recompute.NOTHING] * len(self.layers), strict=True):
            if kept is not None and again is Recompute.WHOLE:
                kept.append(x)
            x = layer(x, packed, None if again is Recompute.WHOLE else kept, self._chosen(layer, packed), again=again)
        return x if self._norm is None else self._norm(x, kept)

    def _chosen(self, layer: Layer, packed: Packed) -> torch.Tensor | None:
        """Tokens of which a layer's answer is wanted; None for all."""
        return packed.chosen if self._norm is not None and layer is self.layers[-1] else None

    def _back(self, slope: torch.Tensor, packed: Packed, kept: list[Any], plan: Sequence[Recompute]) -> Gradients:
        found: Gradients = []
        slope = slope if self._norm is None else self._norm.back(slope, kept)
        for number, layer in reversed(list(enumerate(self.layers))):
            own: Gradients = []
            chosen = self._chosen(layer, packed)
            if plan[number] is Recompute.WHOLE:
                layer(kept.pop(), packed, kept, chosen)
            below = layer.back(slope, packed, kept, chosen, number == 0, own, plan[number])
            found[:0] = own
            if below is not None:
                slope = below
        return found


class _Whole(torch.autograd.Function):
    """A stack as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, packed: Packed, plan: Sequence[Recompute], *outward: torch.Tensor) -> torch.Tensor:
        ctx.stack, ctx.packed, ctx.plan, ctx.kept = stack, packed, plan, []
        return stack._run(packed, ctx.kept, plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError("trying to backward through a stack of layers a second time: what was kept for it is used up")
        return None, None, None, *ctx.stack._back(slopes[0], ctx.packed, kept, ctx.plan)
