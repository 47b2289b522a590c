"""A batch without its padding: its real tokens, row after row."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packed:
    """A batch of B texts, T tokens the longest, without its padding: P tokens, row after row."""

    states: torch.Tensor         # (P, H) that the lowest layer is given
    places: torch.Tensor | None  # (P,) where each stands in (B, T), flattened; None where there is no padding
    chosen: torch.Tensor         # (N,) which of the P predict a completion token
    cos: torch.Tensor            # (P, 1, D) of the rotary embedding,
    sin: torch.Tensor            # and its sines, of which the first half has the sign it is used with
    shape: tuple[int, int]       # B, T
