"""One figure of a benchmark: what lawf takes, what a named peer takes in the same run, and the ratio that was aimed at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

REPEATS = 5  # a figure is the median of this many, at least


@dataclass(frozen=True)
class Figure:
    """A measured pair. `ours` and `theirs` are medians in `unit`; their quotient is what carries over to other machines."""

    what: str                         # for example "first token after a correction, demo model"
    ours: float
    theirs: float
    unit: str                         # s, tokens/s, bytes
    peer: str                         # what `theirs` is, with its version
    goal: float | None = None         # for ours / theirs; None where nothing was aimed at
    better: Literal["lower", "higher"] = "lower"
    repeats: int = REPEATS
    note: str = ""                    # what a reader has to know to repeat it

    @property
    def ratio(self) -> float:
        """ours / theirs."""
        return self.ours / self.theirs

    @property
    def reached(self) -> bool | None:
        """Whether the goal was; None without one."""
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.better == "lower" else self.ratio >= self.goal


def interleaved(runs: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, float]:
    """The median of each, after one run of each that does not count; they take turns, so that other load falls on all alike."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(run())
    return {name: median(values) for name, values in taken.items()}


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """A run that gives the seconds it took."""
    def seconds() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    return seconds
