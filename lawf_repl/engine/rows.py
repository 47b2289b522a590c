"""Many texts written at once by one model, each as if it were alone.

Texts of different lengths usually share a batch by padding, which needs a mask that every model and kind of layer must
honour. Here all rows stand at the same place at every moment: a row that already knows what comes next is fed its own ids
while another writes. So there is neither mask nor padding, recurrent layers included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lawf_repl.engine.cache import CacheKind, cache_keyword, kept_logits, uncached
from lawf_repl.engine.memory import memory_guard
from lawf_repl.engine.reach import behind_marks, reach_of

Choose = Callable[[torch.Tensor, Sequence[int]], Sequence[int]]  # logits (n, V) of the rows at these indices to their next ids (n)
Follow = Callable[[int, int], Sequence[int] | None]              # row and the id that it chose to the ids known behind it; None ends the row
WRITTEN = 128       # tokens that a row is expected to grow by
CACHE_SHARE = 0.3   # of the weights: what the keys and values of all rows may take,
LEAST_BYTES = 2**28  # or this much, of a small model
FEWER = 0.5                                                      # of the rows left: from there on the others are let go of


@torch.no_grad()
def write_rows(model: Any, beginnings: Sequence[Sequence[int]], choose: Choose, follow: Follow, kind: CacheKind,
               context: int | None = None) -> list[list[int]]:
    """Go on from each beginning (at least one id) until `follow` ends it or `context` tokens stand there; returns whole texts as ids.

    As many rows at a time as their states have room for, beside the weights.
    """
    most = rows_at_once(model, max(map(len, beginnings), default=0) + WRITTEN) if kind.mode != "none" else len(beginnings)
    out: list[list[int]] = []
    for start in range(0, len(beginnings), max(most, 1)):
        some = beginnings[start:start + most]
        out += _write(model, some, lambda logits, which, start=start: choose(logits, [start + row for row in which]),  # type: ignore[misc]
                      lambda row, id_, start=start: follow(start + row, id_), kind, context)  # type: ignore[misc]
    return out


def rows_at_once(model: Any, tokens: int) -> int:
    """Rows of so many tokens whose keys and values take CACHE_SHARE of the weights, one at least; without a limit where the config does not say."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads and hasattr(config, "hidden_size") else None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return sys.maxsize
    each = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return max(1, int(max(CACHE_SHARE * weights, LEAST_BYTES) / (each * max(tokens, 1))))


def _write(model: Any, beginnings: Sequence[Sequence[int]], choose: Choose, follow: Follow, kind: CacheKind,
           context: int | None) -> list[list[int]]:
    """All of them at once."""
    texts = [list(beginning) for beginning in beginnings]
    keyword = cache_keyword(model) if kind.mode != "none" else None
    cache: dict[str, Any] = {"use_cache": True, keyword: None} if keyword else uncached(model)
    open_ = [row for row, text in enumerate(texts) if context is None or len(text) < context]
    batch = list(open_)  # the rows that the cache holds
    reach = reach_of(model)
    starts = [reach.start(text) if reach is not None else 0 for text in texts]
    read = 0
    while open_:
        # as far as every open row knows its text; a model that restarts its scan at every chunk gets one at a time behind the first
        far = min(len(texts[row]) for row in open_)
        far = far if kind.chunks or not read else read + 1
        if kind.mode == "cut" and read and len(open_) <= FEWER * len(batch):
            cache[str(keyword)].batch_select_indices(torch.tensor([batch.index(row) for row in open_], device=model.device))
            batch = list(open_)
        since = read if keyword else 0
        span = range(since, far)
        # a row that has ended goes on unseen with whatever it ended with
        ids = torch.tensor([[texts[row][min(place, len(texts[row]) - 1)] for place in span] for row in batch], device=model.device)  # (B, n)
        with memory_guard("answering several prompts", "take fewer or shorter ones"):
            if kind.positions:
                cache["position_ids"] = torch.arange(since, far, device=model.device).expand(len(batch), -1)
            with behind_marks(model, [starts[row] for row in batch], since, far):
                out = model(input_ids=ids, **kept_logits(model, 1), **cache)
        read = far
        if keyword:
            cache[keyword] = out[keyword]
        asking = [row for row in open_ if len(texts[row]) == read]
        if not asking:
            continue
        here = [batch.index(row) for row in asking]
        logits = out.logits[:, -1]
        chosen = choose(logits if len(here) == len(batch) else logits[torch.tensor(here, device=logits.device)], asking)
        for row, id_ in zip(asking, chosen, strict=True):
            texts[row].append(id_)
            known = follow(row, id_)
            if known is None or (context is not None and len(texts[row]) + len(known) >= context):
                open_.remove(row)
            else:
                texts[row] += known
    return texts
