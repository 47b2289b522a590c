"""Which sizes of model fit into free memory: arithmetic alone, for `lawf doctor` and for what is said when memory ran out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Use = Literal["generate", "train"]

BYTES = {"float32": 4, "bfloat16": 2}  # of one number
# Memory over that of the weights, at its peak; the base is its own reference, so the weights are there once.
RATIO: dict[Use, float] = {"generate": 1.2, "train": 1.6}
SIZES = (135_000_000, 600_000_000, 1_700_000_000, 4_000_000_000, 8_000_000_000, 14_000_000_000, 32_000_000_000, 70_000_000_000)
FORMULA = f"parameters x bytes of a number (float32 4, bfloat16 2) x {RATIO['generate']:g} to generate, x {RATIO['train']:g} to train"


@dataclass(frozen=True)
class Fit:
    """Whether a model of a size fits in a number type."""

    parameters: int
    dtype: str
    generate: bool
    train: bool


def needed(parameters: int, dtype: str, use: Use) -> int:
    """Bytes at the peak of a use: FORMULA. Long prompts and large vocabularies take more."""
    return round(parameters * BYTES[dtype] * RATIO[use])


def largest(free: int, dtype: str, use: Use) -> int:
    """Most parameters for which `needed` is at most `free` bytes."""
    return max(0, int(free / (BYTES[dtype] * RATIO[use])))


def what_fits(free: int, sizes: Sequence[int] = SIZES) -> tuple[Fit, ...]:
    """For each size and number type, whether it fits into `free` bytes to generate and to train."""
    return tuple(Fit(size, dtype, needed(size, dtype, "generate") <= free, needed(size, dtype, "train") <= free) for size in sizes for dtype in BYTES)


def fits_text(free: int) -> str:
    """What fits into `free` bytes, as the end of a one-line message."""
    most = {dtype: [size_text(largest(free, dtype, use)) for use in RATIO] for dtype in BYTES}
    told = "; ".join(f"{dtype} {generate} parameters to generate, {train} to train" for dtype, (generate, train) in most.items())
    return f"{free / 2**30:.1f} GiB are free, enough for about: {told}"


def size_text(parameters: int) -> str:
    """A number of parameters as models are named: 135M, 1.7B, 70B."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.3g}B"
    return f"{parameters / 1e6:.3g}M" if parameters >= 10**6 else str(parameters)
