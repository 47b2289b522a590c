"""The plot of `lawf bench objective --plot`: drift against acquisition, in characters; and the same as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from lawf_repl.errors import UsageError

Curve = Sequence[tuple[float, float]]  # (least p of the anchors, drift in nats)
MARKS = "123456789"
COLOURS = ("#0072b2", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#d55e00", "#999999")  # Okabe and Ito's, told apart by the colour-blind too
STYLE = "text{font:14px sans-serif;fill:#444}.grid{stroke:#8884}@media(prefers-color-scheme:dark){svg{background:#111}text{fill:#ccc}}"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 900, 560, 80, 50, 210, 60


def character_plot(curves: Mapping[str, Curve], width: int, height: int) -> str:
    """Lines of characters, each recipe with a number of its own. Raises UsageError where plotext is not installed."""
    try:
        import plotext  # an extra: only this plot needs it
    except ImportError as error:
        raise UsageError("--plot needs plotext, which is not installed: pip install 'lawf-repl[bench]', or give --svg FILE") from error
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, height)
    plotext.title("drift in nats (log) against the least p of the anchors")
    for mark, (name, curve) in zip(MARKS, curves.items(), strict=False):
        plotext.plot([p for p, _ in curve], [math.log10(drift) for _, drift in curve], marker=mark, label=name)
    low, high = _decades(curves)
    ticks = list(range(low, high + 1))
    plotext.yticks(ticks, [f"1e{tick}" for tick in ticks])
    plotext.xlim(0, 1)
    plotext.xlabel("least p of the anchors")
    text: str = plotext.uncolorize(plotext.build())
    plotext.clear_figure()
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n"))


def svg_plot(curves: Mapping[str, Curve]) -> str:
    """One self-contained SVG, readable on light and on dark."""
    low, high = _decades(curves)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(p: float, drift: float) -> str:
        return f"{LEFT + p * wide:.1f},{TOP + (high - math.log10(drift)) / max(high - low, 1) * tall:.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="drift against acquisition">',
             f"<style>{STYLE}</style>",
             f'<text x="{LEFT}" y="28">Drift on unrelated prompts against acquisition, over the course of training</text>']
    for tick in range(low, high + 1):
        y = TOP + (high - tick) / max(high - low, 1) * tall
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">1e{tick}</text>')
    for tenth in range(0, 11, 2):
        x = LEFT + tenth / 10 * wide
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + tall}"/>'
                     f'<text x="{x:.1f}" y="{TOP + tall + 22}" text-anchor="middle">{tenth / 10:g}</text>')
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 12}" text-anchor="middle">least p of the anchors</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour, y = COLOURS[number % len(COLOURS)], TOP + 20 + 24 * number
        dots = "".join('<circle cx="{}" cy="{}" r="3"/>'.format(*place(*point).split(",")) for point in curve)
        line = " ".join(place(*point) for point in curve)
        parts.append(f'<g fill="{colour}" stroke="{colour}"><polyline fill="none" stroke-width="2" points="{line}"/>'
                     f'{dots}<circle cx="{LEFT + wide + 20}" cy="{y - 5}" r="5"/></g><text x="{LEFT + wide + 32}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(curves: Mapping[str, Curve]) -> tuple[int, int]:
    """The powers of ten around all drifts."""
    logs = [math.log10(drift) for curve in curves.values() for _, drift in curve]
    return math.floor(min(logs)), math.ceil(max(logs))
