"""Which sizes of model fit into free memory: arithmetic alone, for `lawf doctor` and for what is said when memory ran out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Use = Literal["generate", "train"]

BYTES = {"float32": 4, "bfloat16": 2}  # of one number
# Memory at its peak, as a share of that of the weights and beside it; the base is its own reference, so the weights are there once.
# Measured on a 135M model in float32 on a CPU, 163 tokens of prompt and 100 of answer: 1.14 times the weights to generate, 2.16 times
# to train, which is 1.6 times and 0.3 GB. 1.6 is also the goal that was set for a 0.6B model.
RATIO: dict[Use, float] = {"generate": 1.2, "train": 1.6}
BESIDE: dict[Use, int] = {"generate": 0, "train": 300_000_000}  # activations and logits of short texts
SIZES = (135_000_000, 600_000_000, 1_700_000_000, 4_000_000_000, 8_000_000_000, 14_000_000_000, 32_000_000_000, 70_000_000_000)
FORMULA = f"parameters x bytes of a number (float32 4, bfloat16 2) x {RATIO['generate']:g} to generate, " \
          f"x {RATIO['train']:g} + {BESIDE['train'] / 1e9:g} GB to train"


@dataclass(frozen=True)
class Fit:
    """Whether a model of a size fits in a number type."""

    parameters: int
    dtype: str
    generate: bool
    train: bool


def needed(parameters: int, dtype: str, use: Use) -> int:
    """Bytes at the peak of a use: FORMULA. Long prompts and large vocabularies take more."""
    return round(parameters * BYTES[dtype] * RATIO[use]) + BESIDE[use]


def largest(free: int, dtype: str, use: Use) -> int:
    """Most parameters for which `needed` is at most `free` bytes."""
    return max(0, int((free - BESIDE[use]) / (BYTES[dtype] * RATIO[use])))


def what_fits(free: int, sizes: Sequence[int] = SIZES) -> tuple[Fit, ...]:
    """For each size and number type, whether it fits into `free` bytes to generate and to train."""
    return tuple(Fit(size, dtype, needed(size, dtype, "generate") <= free, needed(size, dtype, "train") <= free) for size in sizes for dtype in BYTES)


def fits_text(free: int) -> str:
    """What fits into `free` bytes, as the end of a one-line message: what is said when memory ran out."""
    most = {dtype: [size_text(largest(free, dtype, use)) for use in RATIO] for dtype in BYTES}
    told = "; ".join(f"{dtype} {generate} parameters to generate, {train} to train" for dtype, (generate, train) in most.items())
    return f"in {free / 2**30:.1f} GiB there is room for about: {told}"


def size_text(parameters: int) -> str:
    """A number of parameters as models are named: 135M, 1.7B, 70B."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.3g}B"
    return f"{parameters / 1e6:.3g}M" if parameters >= 10**6 else str(parameters)
