"""Many texts written at once: what they share is read once, and each is what it would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawf_repl.engine.cache import likely_kind
from lawf_repl.engine.greedy import most_probable
from lawf_repl.engine.rows import SAVED, write_rows
from tests.conftest import make_tiny_model

LONG = [3 + place * 7 % 200 for place in range(2 * SAVED)]
MODEL = make_tiny_model()
TREES = st.lists(st.lists(st.sampled_from([60, 61]), min_size=1, max_size=7), min_size=1, max_size=6)  # few ids, so that many begin alike


def written(model: Any, rows: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], int]:
    """The texts, each with so many more tokens, and how many tokens the model read for them."""
    left, read = [tokens] * len(rows), 0

    def follow(row: int, id_: int) -> Sequence[int] | None:
        left[row] -= 1
        return () if left[row] else None

    def count(module: Any, args: Any, given: dict[str, Any]) -> None:
        nonlocal read
        read += given["input_ids"].numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return write_rows(model, rows, most_probable, follow, likely_kind(model)), read
    finally:
        handle.remove()


def test_a_long_beginning_that_all_share_is_read_once() -> None:
    rows = [[*LONG, 60, 70], [*LONG, 61], [*LONG[:SAVED], 62, *LONG[SAVED + 1:]]]
    texts, read = written(MODEL, rows, 1)
    assert read < 2.1 * len(LONG)  # half for all, half for two, half for the third
    assert texts == [written(MODEL, [row], 1)[0][0] for row in rows]


def test_rows_that_are_the_same_are_one_until_they_choose_differently() -> None:
    turns = 0

    def choose(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        nonlocal turns
        turns += 1
        assert len(logits) == len(rows) == 3
        return [60 if turns < 3 else 60 + row for row in rows]

    texts = write_rows(MODEL, [[5, 6]] * 3, choose, lambda row, id_: () if turns < 4 else None, likely_kind(MODEL))
    assert texts == [[5, 6, 60, 60, 60 + row, 60 + row] for row in range(3)]


@settings(deadline=None, max_examples=40)
@given(TREES, st.sampled_from([1, 3, 2**20]))
def test_whatever_they_share_each_is_what_it_would_be_alone(rows: list[list[int]], saved: int) -> None:
    from lawf_repl.engine import rows as module

    before, module.SAVED = module.SAVED, saved
    try:
        together, _ = written(MODEL, rows, 4)
    finally:
        module.SAVED = before
    assert together == [written(MODEL, [row], 4)[0][0] for row in rows]
