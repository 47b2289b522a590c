"""Greedy answers to many prompts at once, the same as one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lawf_repl.engine.cache import CacheKind, likely_kind
from lawf_repl.engine.rows import write_rows
from lawf_repl.errors import Stopped


def most_probable(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
    """Greedy choice: (n, V) to n ids."""
    ids: list[int] = logits.argmax(-1).tolist()
    return ids


def greedy_answers(model: Any, prompts: Sequence[Sequence[int]], eos_ids: Iterable[int], max_tokens: int, batch: int = 64,
                   context: int | None = None, kind: CacheKind | None = None,
                   on_progress: Callable[[int, int], None] | None = None, stop: Callable[[], bool] | None = None) -> list[list[int]]:
    """Greedy completions of `prompts` (token ids), the end-of-turn token included where it was reached.

    Prompts of similar length share a batch. `kind` is what the model's trial found; without one it is taken for a plain decoder.
    Returns one list of ids per prompt, at most `max_tokens` long and, with its prompt, at most `context`. Raises Stopped where
    `stop()` turns true, which is asked at every token.
    """
    eos = frozenset(eos_ids)
    kind = kind or likely_kind(model)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index])) if max_tokens > 0 else []
    for start in range(0, len(order), batch):
        rows = order[start:start + batch]
        left = [max_tokens] * len(rows)

        def follow(row: int, id_: int, left: list[int] = left) -> tuple[int, ...] | None:
            if stop is not None and stop():
                raise Stopped
            left[row] -= 1
            return None if id_ in eos or not left[row] else ()

        texts = write_rows(model, [prompts[index] for index in rows], most_probable, follow, kind, context)
        for index, text in zip(rows, texts, strict=True):
            answers[index] = text[len(prompts[index]):]
        if on_progress:
            on_progress(start + len(rows), len(prompts))
    return answers
