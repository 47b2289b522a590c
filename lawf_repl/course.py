"""The course of a training, kept small: some of its steps, evenly spread, whatever their number."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import pairwise
from typing import TypeVar

from lawf_repl.records import Curve, TrainStep

POINTS = 200      # steps that are kept at most
FIGURES = 6000    # and figures: with many anchors there are fewer steps
LEAST = 25        # steps that are kept however many anchors there are
DIGITS = 5        # that count; a plot shows no more

T = TypeVar("T")


class Course:
    """Takes every step of a training and keeps few enough: each second one goes when there are too many, the last one stays."""

    def __init__(self) -> None:
        self._kept: list[TrainStep] = []
        self._last: TrainStep | None = None
        self._every = 1
        self._seen = 0

    def add(self, step: TrainStep) -> None:
        if self._seen % self._every == 0:
            self._kept.append(step)
        self._seen += 1
        self._last = step
        if len(self._kept) >= max(LEAST, min(POINTS, FIGURES // (5 + len(step.anchor_p)))):
            self._kept, self._every = self._kept[::2], self._every * 2

    def curve(self) -> Curve | None:
        """What was kept; None where there was no step."""
        if self._last is None:
            return None
        steps = self._kept if self._kept[-1] is self._last else [*self._kept, self._last]
        return Curve(tuple(step.step for step in steps), tuple(_short(step.loss) for step in steps),
                     tuple(tuple(map(_short, column)) for column in zip(*(step.anchor_p for step in steps), strict=True)),
                     tuple(None if step.drift is None else _short(step.drift) for step in steps), tuple(_short(step.seconds) for step in steps),
                     tuple(step.fixed for step in steps), tuple(step.round for step in steps))


def watched(steps: Generator[TrainStep, None, T], course: Course) -> Generator[TrainStep, None, T]:
    """The same steps and result, each step seen by `course`."""
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            course.add(step)
            yield step


def steps_of(curve: Curve) -> list[TrainStep]:
    """The steps that a curve holds. Raises ValueError where its columns do not fit each other, or its steps are in no order."""
    columns = [curve.step, curve.loss, curve.drift, curve.seconds, curve.fixed, curve.round, *curve.anchor_p]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("the columns of the curve differ in length")
    if not all(before < after for before, after in pairwise([-1, *curve.step, 2 ** 53])):
        raise ValueError("the steps of the curve do not follow each other")
    return [TrainStep(curve.step[i], curve.loss[i], tuple(column[i] for column in curve.anchor_p), curve.drift[i], curve.seconds[i], curve.fixed[i],
                      curve.round[i]) for i in range(len(curve.step))]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
