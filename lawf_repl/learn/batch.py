"""Token rows for one forward pass, and where in them the completions are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lawf_repl.engine.cache import kept_logits, uncached
from lawf_repl.engine.reach import Reach, behind_marks, reach_of

Pair = tuple[Sequence[int], Sequence[int]]  # prompt ids, completion ids


class Past(NamedTuple):
    """What stands before the first column of a batch, padded on the left: its states are known."""

    cache: Any               # behind.FixedCache of S tokens: no forward changes it
    mask: torch.Tensor       # (B, S), 1 where a token is real
    positions: torch.Tensor  # (B, T) places in the text of the tokens behind them


@dataclass(frozen=True)
class Batch:
    """Prompts with completions, padded on the right, which causal attention never looks at from the left."""

    ids: torch.Tensor      # (B, T)
    mask: torch.Tensor     # (B, T), 1 where a token is real
    rows: torch.Tensor     # (N,) row of each completion token
    columns: torch.Tensor  # (N,) column of the position that predicts it
    targets: torch.Tensor  # (N,) the completion tokens themselves, row after row
    lengths: tuple[int, ...]  # completion tokens of each row
    past: Past | None = None

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, ...) values by row of the batch."""
        return torch.split(values, list(self.lengths))


def make_batch(pairs: Sequence[Pair], device: torch.device) -> Batch:
    """Put (prompt, completion) pairs into one batch."""
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros(len(pairs), width, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, completion) in enumerate(pairs):
        whole = [*prompt, *completion]
        ids[row, :len(whole)] = torch.tensor(whole)
        mask[row, :len(whole)] = 1
        rows += [row] * len(completion)
        columns += range(len(prompt) - 1, len(whole) - 1)
        targets += completion
    where, place, wanted = (torch.tensor(values, dtype=torch.long, device=device) for values in (rows, columns, targets))
    return Batch(ids.to(device), mask.to(device), where, place, wanted, tuple(len(completion) for _, completion in pairs))


def completion_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits that predict each completion token (N, V): the head runs on these positions only.

    Computed without a cache. Some models scale or cap their logits behind the head, so the head is the model's own, fed
    with the chosen positions through its `logits_to_keep`; rows are cut out of one pass over the columns in use.
    """
    columns, where = torch.unique(batch.columns, return_inverse=True)
    keep = kept_logits(model, columns)
    logits = forward(model, batch, **keep)  # (B, C, V), or (B, T, V)
    return logits[batch.rows, where if keep else batch.columns]


def forward(model: Any, batch: Batch, **keep: Any) -> torch.Tensor:
    """One forward without a cache, or behind the states that the batch brings; the model's logits.

    An adapter that acts on completions alone is masked out before their marks, unless its Reach has a mask in force already.
    """
    if batch.past is not None:
        both = torch.cat([batch.past.mask, batch.mask], 1)
        behind: torch.Tensor = model(input_ids=batch.ids, attention_mask=None if bool(both.all()) else both, position_ids=batch.past.positions,
                                     past_key_values=batch.past.cache, use_cache=True, **keep).logits
        return behind
    reach = reach_of(model)
    starts = starts_of(batch, reach) if reach is not None and reach.acting is None else [0]
    with behind_marks(model, starts, 0, batch.ids.shape[1]):
        mask = None if bool(batch.mask.all()) else batch.mask  # one unpadded shape needs no mask
        logits: torch.Tensor = model(input_ids=batch.ids, attention_mask=mask, **uncached(model), **keep).logits
    return logits


def starts_of(batch: Batch, reach: Reach) -> list[int]:
    """Where in each row an adapter with this Reach begins to act: at the last mark of its prompt."""
    firsts = {row: column for row, column in zip(reversed(batch.rows.tolist()), reversed(batch.columns.tolist()), strict=True)}
    ids = batch.ids.tolist()
    return [reach.start(ids[row][:firsts[row] + 1]) if row in firsts else len(ids[row]) for row in range(len(ids))]
