"""The course of a training: small however long it was, true where it is kept, and read from files that have none."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawf_repl import store
from lawf_repl.beats import Trained
from lawf_repl.chronicle import read_chronicle
from lawf_repl.course import FIGURES, LEAST, POINTS, Course, steps_of, watched
from lawf_repl.records import Curve, TrainStep
from lawf_repl.ui.chronicle import Teller
from lawf_repl.ui.theme import Theme
from tests import saved
from tests.test_render import rendered


def step(n: int, anchors: int = 1) -> TrainStep:
    return TrainStep(n, n * 0.5, tuple(n / 1e6 for _ in range(anchors)), None if n % 2 else n * 1e-7, n * 0.25, n > 5, 1 + n // 10)


def course_of(count: int, anchors: int = 1) -> Curve:
    course = Course()
    for n in range(1, count + 1):
        course.add(step(n, anchors))
    found = course.curve()
    assert found is not None
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 40))
def test_few_steps_are_kept_the_first_and_the_last_among_them(count: int, anchors: int) -> None:
    curve = course_of(count, anchors)
    assert len(curve.step) <= min(count, max(LEAST, min(POINTS, FIGURES // (5 + anchors))))
    assert curve.step[0] == 1 and curve.step[-1] == count and list(curve.step) == sorted(set(curve.step))
    gaps = {later - before for before, later in zip(curve.step, curve.step[1:-1], strict=False)}
    assert len(gaps) <= 1, "they are evenly spread"
    assert count < LEAST or len(curve.step) >= LEAST // 2


def test_what_is_kept_is_what_was() -> None:
    assert steps_of(course_of(20, 2)) == [step(n, 2) for n in range(1, 21)]
    assert Course().curve() is None


def test_a_long_training_with_many_anchors_is_small_in_the_file() -> None:
    assert len(json.dumps(store.to_json(course_of(100_000, 100)))) < 60_000


def test_a_curve_goes_through_json() -> None:
    curve = course_of(30, 3)
    assert store.from_json(Curve, json.loads(json.dumps(store.to_json(curve)))) == curve


def test_watching_changes_nothing_and_closes_what_it_watches() -> None:
    closed = []

    def training() -> Generator[TrainStep, None, str]:
        try:
            yield step(1)
            yield step(2)
            return "done"
        finally:
            closed.append(True)

    course, got = Course(), []

    def follow() -> Generator[TrainStep, None, None]:
        got.append((yield from watched(training(), course)))

    assert list(follow()) == [step(1), step(2)] and got == ["done"] and closed == [True]
    begun = watched(training(), Course())
    next(begun)
    begun.close()
    assert closed == [True, True]


def test_a_file_without_the_course_is_told(tmp_path: Path) -> None:
    told = saved.events(tmp_path)
    training = next(event for event in told if event["type"] == "training")
    views = []
    for curve in (training["curve"], None):
        training["curve"] = curve
        path = saved.write(tmp_path / "whole.jsonl", told[:-1])
        assert store.verify(path) == []
        beat = next(beat for beat in read_chronicle(path).beats if isinstance(beat, Trained))
        views.append(rendered(Teller(Theme(plain=True), 80).beat(beat), 80))
    assert "step 12" in views[0] and "█" in views[0] and "its course was not recorded" in views[1] and "12 steps, 1.5 s" in views[1]


@pytest.mark.parametrize("column", ["loss", "drift", "anchor_p"])
def test_columns_that_do_not_fit_are_found(tmp_path: Path, column: str) -> None:
    told = saved.events(tmp_path)
    training = next(event for event in told if event["type"] == "training")
    training["curve"][column] = training["curve"][column][:-1] if column != "anchor_p" else [[0.5]]
    path = saved.write(tmp_path / "whole.jsonl", told[:-1])
    assert [found.line for found in store.verify(path)] == [15]
    assert [found.line for found in read_chronicle(path).troubles] == [15]
