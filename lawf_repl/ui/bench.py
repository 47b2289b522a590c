"""The tables of `lawf bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from lawf_repl.ui.theme import Theme

TITLES = {"equal": "equal acquisition: every anchor at its target, the greedy text right",
          "end": "at the end of each training"}
COLUMNS = ("recipe", "fixed", "steps", "s", "drift", "95 %", "median", "flips", "general", "local")


class SummaryRow(Protocol):
    """What a row of the table is made from: a recipe over all edits and seeds."""

    @property
    def recipe(self) -> str: ...
    @property
    def acquired(self) -> float: ...
    @property
    def steps(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def drift_mean(self) -> float: ...
    @property
    def drift_median(self) -> float: ...
    @property
    def drift_low(self) -> float: ...
    @property
    def drift_high(self) -> float: ...
    @property
    def flips(self) -> float: ...
    @property
    def generality(self) -> float: ...
    @property
    def locality(self) -> float: ...


def summary_table(summaries: Sequence[SummaryRow], when: str, theme: Theme) -> Table:
    """Recipes as rows: share fixed, median steps and seconds, drift in nats with its interval, flips, paraphrases and neighbours that hold."""
    gap = 1 if theme.plain else 0  # a box has a column of its own between two
    table = Table(title=Text(TITLES[when], theme.rich("title")), title_justify="left", box=None if theme.plain else box.SIMPLE_HEAD,
                  border_style=theme.rich("border"), header_style=theme.rich("quiet"), show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=True)
    most = max((one.acquired for one in summaries), default=0.0)  # little drift is no merit where the fix was not learned
    best = min((one.drift_mean for one in summaries if one.acquired == most), default=0.0)
    for one in summaries:
        cells = (f"{one.acquired:.0%}", f"{one.steps:.0f}", f"{one.seconds:.1f}", _power(one.drift_mean, 1),
                 f"{_power(one.drift_low)}-{_power(one.drift_high)}", _power(one.drift_median, 1), f"{one.flips:.1%}", f"{one.generality:.1%}",
                 f"{one.locality:.1%}")
        look = theme.rich("good") if one.acquired == most and one.drift_mean == best else ""
        table.add_row(Text(one.recipe, look), *(Text(cell, look if name == "drift" else "") for name, cell in zip(COLUMNS[1:], cells, strict=True)))
    return table


class StreamRow(Protocol):
    """A session after one more correction."""

    @property
    def corrections(self) -> int: ...
    @property
    def edit(self) -> str: ...
    @property
    def hold(self) -> float: ...
    @property
    def drift_nats(self) -> float: ...
    @property
    def flips(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def seconds(self) -> float: ...


def stream_table(rows: Sequence[StreamRow], theme: Theme) -> Table:
    """After each correction: the share of all so far that hold, what the rest of the model lost, and what the training took."""
    table = Table(title=Text("one session, one correction after the other", theme.rich("title")), title_justify="left",
                  box=None if theme.plain else box.SIMPLE_HEAD, border_style=theme.rich("border"), header_style=theme.rich("quiet"), show_edge=False,
                  pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("n", "correction", "hold", "drift", "flips", "steps", "s"):
        table.add_column(name, justify="left" if name == "correction" else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(str(row.corrections), Text(row.edit), Text(f"{row.hold:.1%}", theme.rich("good" if row.hold == 1 else "bad")),
                      _power(row.drift_nats, 1), f"{row.flips:.1%}", str(row.steps), f"{row.seconds:.1f}")
    return table


class FigureRow(Protocol):
    """A measured pair: ours, a peer's, and the quotient that was aimed at."""

    @property
    def what(self) -> str: ...
    @property
    def ours(self) -> float: ...
    @property
    def theirs(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def goal(self) -> float | None: ...
    @property
    def better(self) -> str: ...
    @property
    def ratio(self) -> float: ...
    @property
    def reached(self) -> bool | None: ...


def figures_table(figures: Sequence[FigureRow], theme: Theme) -> Table:
    """Each figure with its peer's, their quotient, and the goal where there is one: met or missed in words, not in colour alone."""
    table = Table(box=None if theme.plain else box.SIMPLE_HEAD, border_style=theme.rich("border"), header_style=theme.rich("quiet"), show_edge=False,
                  pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("what", "ours", "peer", "", "ratio", "goal"):
        table.add_column(name, justify="left" if name in ("what", "") else "right", overflow="fold" if name in ("what", "") else "ellipsis",
                         no_wrap=name not in ("what", ""))
    for one in figures:
        look = "" if one.reached is None else theme.rich("good" if one.reached else "bad")
        goal = "" if one.goal is None else f"{'at most' if one.better == 'lower' else 'at least'} {one.goal:g} {'met' if one.reached else 'missed'}"
        table.add_row(Text(one.what), quantity(one.ours, one.unit), quantity(one.theirs, one.unit), Text(one.peer, theme.rich("quiet")),
                      Text(f"{one.ratio:.3g}", look), Text(goal, look))
    return table


def quantity(value: float, unit: str) -> str:
    """A value with its unit, short: 12 ms, 1.4 s, 812 MiB, 540 tokens/s."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _power(value: float, digits: int = 0) -> str:
    """1.2e-5 for 0.000012: Python's exponents have a zero that a narrow column cannot spare."""
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
