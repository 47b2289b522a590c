"""The course of a training as small charts in SVG: loss, drift and the probability of every anchor, over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lawf_repl.beats import Trained
from lawf_repl.records import TrainStep
from lawf_repl.report.markup import Html, joined, own, tag
from lawf_repl.ui.layout import token_label
from lawf_repl.ui.render import percent, shorten

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 270, 180, 38, 10, 10, 32
LINES = 6           # anchors that get a line: colours and dashes beyond that are not told apart
DECADES = 12        # of a logarithmic axis at most
LARGEST = 1e100     # what is above it, below its inverse, or no number is not drawn
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: its points, and which of the looks it has."""

    points: tuple[Point, ...]
    look: int = 0


def charts(trained: Trained) -> Html:
    """All that is known of a training's course."""
    steps = trained.steps
    if not steps:
        return tag("p", "The file does not have the course of this training.", class_="quiet")
    drifts = [(float(step.step), step.drift) for step in steps if step.drift is not None]
    parts = [chart("objective", [Series(tuple((float(step.step), step.loss) for step in steps))], steps),
             chart("drift on a few probes", [Series(tuple(drifts))], steps) if drifts else None,
             _anchors(trained)]
    rounds = tag("p", "A dotted line is where a round begins: what had moved by then is held from there on.",
                 class_="quiet small") if steps[-1].round > steps[0].round else None
    return joined(tag("div", *parts, class_="charts"), rounds)


def _anchors(trained: Trained) -> Html | None:
    """The probability of each anchor's token; of many anchors those that ended lowest."""
    steps, last = trained.steps, trained.steps[-1].anchor_p
    if not last:
        return None
    shown = sorted(sorted(range(len(last)), key=lambda index: last[index])[:LINES])
    series = [Series(tuple((float(step.step), step.anchor_p[index]) for step in steps), look) for look, index in enumerate(shown)]
    items = []
    for look, index in enumerate(shown):
        anchor = trained.anchors[index] if trained.anchors else None
        name = joined(own(shorten(token_label(anchor.rejected), 24)), " → ", own(shorten(token_label(anchor.chosen), 24))) if anchor \
            else joined(f"anchor {index + 1}")
        sample = tag("svg", tag("line", x1=0, y1=5, x2=28, y2=5, class_=f"line look{look}"), viewBox="0 0 28 10", class_="sample", aria_hidden="true")
        items.append(tag("li", sample, " ", name, f" {percent(trained.result.anchor_p[index]).strip()}"))
    if len(last) > len(shown):
        items.append(tag("li", f"and {len(last) - len(shown)} more that ended higher", class_="quiet"))
    return chart("probability of the wanted token", series, steps, share=True, legend=tag("ul", *items, class_="keys small"))


def chart(title: str, series: Sequence[Series], steps: Sequence[TrainStep], *, share: bool = False, legend: Html | None = None) -> Html:
    """One chart over the steps: `share` from 0 to 100 %, else logarithmic. What cannot be drawn there is left out, and said."""
    kept = [Series(tuple(point for point in one.points if point[1] < LARGEST and (share or point[1] > 1 / LARGEST)), one.look) for one in series]
    left_out = sum(len(one.points) for one in series) - sum(len(one.points) for one in kept)
    values = [y for one in kept for _, y in one.points]
    if not values:
        return tag("figure", tag("figcaption", title), tag("p", "no value that could be drawn", class_="quiet"))
    first, last = steps[0].step, steps[-1].step
    low, high = (0, 1) if share else _decades(values)

    def across(step: float) -> float:
        return LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        height = min(max(value, 0.0), 1.0) if share else (math.log10(value) - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(height, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    parts: list[Html] = []
    for height, label in [(tick / 4, f"{tick * 25}%") for tick in range(5)] if share else _ticks(low, high):
        y = down(height)
        parts += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_at(y), y2=_at(y), class_="grid"),
                  tag("text", label, x=LEFT - 6, y=_at(y + 3.5), class_="tick end")]
    for step in whole_ticks(first, last):
        parts += [tag("line", x1=_at(across(step)), x2=_at(across(step)), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"),
                  tag("text", str(step), x=_at(across(step)), y=HEIGHT - BOTTOM + 15, class_="tick middle")]
    for before, after in pairwise(steps):
        if after.round != before.round:
            parts.append(tag("line", x1=_at(across(after.step)), x2=_at(across(after.step)), y1=TOP, y2=HEIGHT - BOTTOM, class_="round"))
    parts += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"),
              tag("text", "step", x=_at((LEFT + WIDTH - RIGHT) / 2), y=HEIGHT - 4, class_="tick middle")]
    for one in kept:
        places = [(across(x), down(y)) for x, y in one.points]
        if places:
            parts += [tag("polyline", points=" ".join(f"{_at(x)},{_at(y)}" for x, y in places), class_=f"line look{one.look}"),
                      tag("circle", cx=_at(places[-1][0]), cy=_at(places[-1][1]), r=3, class_=f"dot look{one.look}")]
    spoken = f"{title}{'' if share else ' in nats'}: {_figure(values[0], share)} at step {first}, {_figure(values[-1], share)} at step {last}"
    drawing = tag("svg", tag("title", spoken), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    note = tag("p", f"left out: {left_out} value{'' if left_out == 1 else 's'} of 0", class_="quiet small") if left_out else None
    ends = None if share else tag("span", f" in nats, from {_figure(values[0], share)} to {_figure(values[-1], share)}", class_="quiet")
    return tag("figure", tag("figcaption", title, ends), drawing, legend, note)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    high = math.ceil(math.log10(max(values)))
    low = max(math.floor(math.log10(min(values))), high - DECADES)
    return (low, high) if low < high else (low, low + 1)


def _ticks(low: int, high: int) -> list[tuple[float, str]]:
    every = max(1, math.ceil((high - low) / 5))
    return [(10.0 ** tick, f"1e{tick}") for tick in range(low, high + 1, every)]


def whole_ticks(first: int, last: int) -> list[int]:
    """At most six whole numbers from `first` to `last` that are round."""
    size = max(last - first, 1)
    every = next(number * 10 ** power for power in range(300) for number in (1, 2, 5) if size / (number * 10 ** power) <= 5)
    return [tick for tick in range(-(-first // every) * every, last + 1, every)]


def _figure(value: float, share: bool) -> str:
    return percent(value).strip() if share else f"{value:.2g}"


def _at(value: float) -> str:
    return f"{value:.1f}"
