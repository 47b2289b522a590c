"""Batches without what comes before the mark of an adapter that acts on completions alone: there the model is the base at every step.

Keys and values of those tokens are computed once, and a step runs the tokens from the mark on. How a model takes them is tried on a
few tokens first; one that takes them otherwise reads whole texts, with what the LoRA adds masked out before the mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lawf_repl.engine.cache import kept_logits, likely_kind, parameters
from lawf_repl.engine.reach import Reach
from lawf_repl.learn.batch import Batch, Past, completion_logits, make_batch, starts_of
from lawf_repl.learn.head import NOT_APART

CLOSE = 1e-3        # difference of the logits, as a share of their spread; rounding in half precision is
CLOSE_HALF = 0.05   # more
TRIAL = (7, 13), (12, 19)  # where the mark would be, and the length, of the texts that it is tried on


class FixedLayer(DynamicLayer):
    """States of tokens that never change: what comes behind them is put there for one forward, and is not kept."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Both (B, heads, S, D)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The fixed states with those of the new tokens (B, heads, n, D) behind them."""
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class FixedCache(DynamicCache):
    """Such layers alone."""

    def __init__(self, layers: Sequence[DynamicLayer]) -> None:
        super().__init__()
        self.layers = [FixedLayer(layer.keys, layer.values) for layer in layers]  # type: ignore[arg-type]  # there are some: they were written to

    def forget(self, count: int) -> None:
        """Let go of the states of the first `count` layers, which no forward runs any more; their lengths are left."""
        for layer in self.layers[:count]:
            assert isinstance(layer, FixedLayer)
            layer.keys, layer.values = layer.keys[:1, :1, :, :1].clone(), layer.values[:1, :1, :, :1].clone()


@torch.no_grad()
def behind(model: Any, reach: Reach, batch: Batch) -> Batch | None:
    """The tokens of a batch from each row's mark on, with the states before it; None where there is nothing before, or a row has no mark."""
    starts = starts_of(batch, reach)
    return None if min(starts) == 0 else _cut(model, reach, batch, starts)


def _cut(model: Any, reach: Reach, batch: Batch, starts: Sequence[int]) -> Batch | None:
    """None where a completion is predicted before its row's start."""
    start = torch.tensor(list(starts), device=batch.ids.device)  # (B,)
    ends = batch.mask.sum(1)
    if bool((batch.columns < start[batch.rows]).any()):
        return None
    width, left = int((ends - start).max()), int(start.max())
    places = torch.arange(left, device=start.device)[None] - (left - start)[:, None]   # (B, S), padded on the left: windows stay what they are
    seen = places >= 0
    positions = start[:, None] + torch.arange(width, device=start.device)[None]         # (B, U), padded on the right
    real = positions < ends[:, None]
    before, ids = batch.ids.gather(1, places.clamp(min=0)), batch.ids.gather(1, positions.clamp(max=batch.ids.shape[1] - 1))
    cache = DynamicCache()
    with reach.only(torch.zeros_like(seen)):
        model(input_ids=before, attention_mask=None if bool(seen.all()) else seen.long(), position_ids=places.clamp(min=0),
              past_key_values=cache, use_cache=True, **kept_logits(model, 1))
    past = Past(FixedCache([layer for layer in cache.layers if isinstance(layer, DynamicLayer)]), seen.long(), positions)
    return replace(batch, ids=ids, mask=real.long(), columns=batch.columns - start[batch.rows], past=past)


def nbytes(batch: Batch) -> int:
    """Bytes of the states before the marks."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in batch.past.cache.layers) if batch.past is not None else 0


@torch.no_grad()
def can_be_cut(model: Any, reach: Reach) -> bool:
    """Whether logits behind states that were computed before are those of whole texts: tried on two of unequal length."""
    if likely_kind(model).mode != "cut" or not {"position_ids", "past_key_values"} <= set(parameters(model)):
        return False
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    rows = [[(5 + 7 * row + 11 * place) % vocabulary for place in range(length)] for row, (_, length) in enumerate(TRIAL)]
    batch = make_batch([(row[:start + 1], row[start + 1:]) for row, (start, _) in zip(rows, TRIAL, strict=True)], model.device)
    try:
        with reach.only(torch.zeros_like(batch.mask, dtype=torch.bool)):  # whatever the adapter has learned
            whole = completion_logits(model, batch)
        cut = _cut(model, reach, batch, [start for start, _ in TRIAL])
        if cut is None:
            return False
        with reach.only(torch.zeros_like(cut.mask, dtype=torch.bool)):
            found = completion_logits(model, cut)
    except NOT_APART:
        return False
    close = CLOSE if model.dtype == torch.float32 else CLOSE_HALF
    off = torch.nan_to_num((found - whole).float().abs(), nan=torch.inf, posinf=torch.inf)
    return bool(off.mean() <= close * torch.nan_to_num(whole.float(), neginf=0.0).std())
