"""Many texts written at once by one model, each as if it were alone.

Texts of different lengths usually share a batch by padding, which needs a mask that every model and kind of layer must
honour. Here all rows stand at the same place at every moment: a row that already knows what comes next is fed its own ids
while another writes. So there is neither mask nor padding, recurrent layers included. What rows have in common at their
beginning, a template or a long prompt of which only the question varies, is read once, where a cache can be copied row by row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from lawf_repl.engine.cache import CacheKind, cache_keyword, kept_logits, shared_length, uncached
from lawf_repl.engine.layout import is_plain
from lawf_repl.engine.memory import beside_weights, memory_guard
from lawf_repl.engine.plain import PlainSteps
from lawf_repl.engine.reach import behind_marks, reach_of
from lawf_repl.engine.roomy import RoomyLayer

Choose = Callable[[torch.Tensor, Sequence[int]], Sequence[int]]  # logits (n, V) of the rows at these indices to their next ids (n)
Follow = Callable[[int, int], Sequence[int] | None]              # row and the id that it chose to the ids known behind it; None ends the row
WRITTEN = 128       # tokens that a row is expected to grow by
CACHE_SHARE = 0.3   # of the weights: what the keys and values of all rows may take
FEWER = 0.5         # of the rows left: from there on the others are let go of
SAVED = 2**8        # tokens that a forward pass more has to save, where rows are the same for a while


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
    return max(1, int(beside_weights(model, CACHE_SHARE) / (each * max(tokens, 1))))


def _write(model: Any, beginnings: Sequence[Sequence[int]], choose: Choose, follow: Follow, kind: CacheKind,
           context: int | None) -> list[list[int]]:
    """All of them at once. Rows that are the same text so far share a row of the cache, which becomes several where they part."""
    texts = [list(beginning) for beginning in beginnings]
    keyword = cache_keyword(model) if kind.mode != "none" else None
    cache: dict[str, Any] = {"use_cache": True, keyword: None} if keyword else uncached(model)
    selects = kind.mode == "cut" and keyword is not None
    steps = PlainSteps(model) if selects and is_plain(model) and reach_of(model) is None else None
    if steps is not None and keyword is not None:
        cache[keyword] = DynamicCache()
        cache[keyword].layers = [RoomyLayer() for _ in model.model.layers]
    open_ = [row for row, text in enumerate(texts) if context is None or len(text) < context]
    reach = reach_of(model)
    starts = [reach.start(text) if reach is not None else 0 for text in texts]
    # the open rows of each row of the cache, and one whose text that is
    members = _alike(open_, lambda row: starts[row]) if selects else [[row] for row in open_]
    leads = [rows[0] for rows in members]
    read = 0
    while open_:
        # as far as every open row knows its text; a model that restarts its scan at every chunk gets one at a time behind the first
        far = min(len(texts[row]) for row in open_)
        far = far if kind.chunks or not read else read + 1
        if selects:
            live = sum(map(bool, members))
            parts, far = _parted(members, texts, read, far)
            if len(parts) > live or (read and live <= FEWER * len(members)):
                if read:
                    cache[str(keyword)].batch_select_indices(torch.tensor([number for number, _ in parts], device=model.device))
                members = [rows for _, rows in parts]
                leads = [rows[0] for rows in members]
        since = read if keyword else 0
        span = range(since, far)
        # a row that has ended goes on unseen with whatever it ended with
        ids = torch.tensor([[texts[row][min(place, len(texts[row]) - 1)] for place in span] for row in leads], device=model.device)  # (B, n)
        with memory_guard("answering several prompts", "take fewer or shorter ones"):
            if steps is not None and len(span) == 1 and read and steps.stands():
                last = steps.head(steps.rows(ids[:, 0], cache[str(keyword)]))
            else:
                if kind.positions:
                    cache["position_ids"] = torch.arange(since, far, device=model.device).expand(len(leads), -1)
                with behind_marks(model, [starts[row] for row in leads], since, far):
                    out = model(input_ids=ids, **kept_logits(model, 1), **cache)
                last = out.logits[:, -1]
                if keyword:
                    cache[keyword] = out[keyword]
        read = far
        asking = [row for row in open_ if len(texts[row]) == read]
        if not asking:
            continue
        where = {row: number for number, rows in enumerate(members) for row in rows}
        here = [where[row] for row in asking]
        chosen = choose(last if here == list(range(len(leads))) else last[torch.tensor(here, device=last.device)], asking)
        for row, id_ in zip(asking, chosen, strict=True):
            texts[row].append(id_)
            known = follow(row, id_)
            if known is None or (context is not None and len(texts[row]) + len(known) >= context):
                open_.remove(row)
                members[where[row]].remove(row)
            else:
                texts[row] += known
        leads = [rows[0] if rows else lead for rows, lead in zip(members, leads, strict=True)]
    return texts


def _parted(members: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], read: int, far: int) -> tuple[list[tuple[int, list[int]]], int]:
    """Rows that may be read together from `read` on, each group with the number of the one it was in, and how far: to `far`,
    or to an earlier place where some part, if enough is saved by reading what they share once.
    """
    if all(len(rows) <= 1 for rows in members):
        return [(number, list(rows)) for number, rows in enumerate(members) if rows], far

    def parts(stop: int) -> list[tuple[int, list[int]]]:
        return [(number, part) for number, rows in enumerate(members) for part in _alike(rows, lambda row: tuple(texts[row][read:stop]))]

    near, finest = parts(read + 1), parts(far)
    place = min((read + shared_length(*(texts[row][read:far] for row in rows)) for _, rows in near if len(rows) > 1), default=far)
    return (near, place) if (len(finest) - len(near)) * (place - read) >= SAVED else (finest, far)


def _alike(rows: Sequence[int], key: Callable[[int], Any]) -> list[list[int]]:
    """Rows with the same key together, in the order of their first ones."""
    groups: dict[Any, list[int]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
