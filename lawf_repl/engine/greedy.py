"""Answers to many prompts at once, exactly as one at a time: prompts of equal length share a batch, so nothing is padded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lawf_repl.engine.cache import CacheKind, cache_keyword, kept_logits, likely_kind, uncached
from lawf_repl.engine.memory import memory_guard

Choose = Callable[[torch.Tensor], torch.Tensor]  # logits (B, V) to token ids (B, 1)


def most_probable(logits: torch.Tensor) -> torch.Tensor:
    """Greedy choice: (B, V) to (B, 1)."""
    return logits.argmax(-1, keepdim=True)


@torch.no_grad()
def greedy_answers(model: Any, prompts: Sequence[Sequence[int]], eos_ids: Iterable[int], max_tokens: int, batch: int = 64,
                   context: int | None = None, kind: CacheKind | None = None,
                   on_progress: Callable[[int, int], None] | None = None, choose: Choose = most_probable) -> list[list[int]]:
    """Greedy completions of `prompts` (token ids), the end-of-turn token included where it was reached.

    Rows of one batch have the same length, so neither mask nor position ids are needed; a row that has ended goes on
    unseen until the batch is done. `kind` is what the model's trial found; without one it is taken for a plain decoder.
    Another `choose` makes them other than greedy.
    Returns one list of ids per prompt, at most `max_tokens` long and, with its prompt, at most `context`.
    """
    eos = frozenset(eos_ids)
    kind = kind or likely_kind(model)
    keyword = cache_keyword(model) if kind.mode != "none" else None
    stop = torch.tensor(sorted(eos), device=model.device)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for indices in by_length.values():
        for start in range(0, len(indices), batch):
            rows = indices[start:start + batch]
            ids = torch.tensor([list(prompts[i]) for i in rows], device=model.device)  # (B, T)
            ended, steps = torch.zeros(len(rows), dtype=torch.bool, device=model.device), []
            cache: dict[str, Any] = {"use_cache": True, keyword: None} if keyword else uncached(model)
            read = 0
            for _ in range(max_tokens if context is None else min(max_tokens, context - ids.shape[1])):
                with memory_guard("answering several prompts", "take fewer or shorter ones"):
                    if kind.positions:
                        cache["position_ids"] = torch.arange(read, read + ids.shape[1], device=model.device).expand(len(rows), -1)
                    read += ids.shape[1]
                    out = model(input_ids=ids, **kept_logits(model, 1), **cache)
                best = choose(out.logits[:, -1])  # (B, 1)
                if keyword:
                    cache[keyword], ids = out[keyword], best
                else:
                    ids = torch.cat([ids, best], 1)
                steps.append(best)
                ended |= torch.isin(best[:, 0], stop)
                if bool(ended.all()):
                    break
            for i, row in zip(rows, torch.cat(steps, 1).tolist() if steps else [[]] * len(rows), strict=True):
                end = next((n for n, id_ in enumerate(row) if id_ in eos), len(row) - 1)
                answers[i] = row[:end + 1]
            done += len(rows)
            if on_progress:
                on_progress(done, len(prompts))
    return answers
