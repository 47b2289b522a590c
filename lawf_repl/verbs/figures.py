"""`lawf bench speed` and `lawf bench start`: ratios against a peer in the same run, as a table or as one JSON object."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from lawf_repl.config import Settings
from lawf_repl.errors import UsageError
from lawf_repl.verbs.inputs import print_json

if TYPE_CHECKING:
    from lawf_repl.bench.figures import Figure


def show_figures(bench: str, source: Iterable[Figure], settings: Settings, about: dict[str, object]) -> int:
    """Run a bench; a line on standard error as each figure is there, then all of them. Exit code 0, 130 if interrupted."""
    from lawf_repl.ui.bench import figures_table
    from lawf_repl.verbs.story import Story

    figures: list[Figure] = []
    interrupted = False
    try:
        for figure in source:
            figures.append(figure)
            print(f"lawf: {figure.what}: {figure.ratio:.3g} of {figure.peer}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        interrupted = True
    if settings.json:
        print_json({"schema": "lawf.bench/1", "bench": bench, "complete": not interrupted, **about,
                    "figures": [asdict(figure) | {"ratio": figure.ratio, "reached": figure.reached} for figure in figures]})
    elif figures:
        story = Story(settings)
        story.console.print(figures_table(figures, story.theme))
    return 130 if interrupted else 0


def run_figures(options: argparse.Namespace, settings: Settings) -> int:
    """`lawf bench speed` or `lawf bench start`."""
    if options.what == "start":
        return _start(options, settings)
    return _speed(options, settings)


def _start(options: argparse.Namespace, settings: Settings) -> int:
    from lawf_repl.bench.start import load, not_measured, start_figures
    from lawf_repl.verbs.bench import versions

    for name in ("model", "adapter"):
        if name in options:
            raise UsageError(f"lawf bench start times the embedded demo model: leave out --{name}")
    about: dict[str, object] = {"versions": versions(), "processors": os.cpu_count(), "load": load(), "not_measured": not_measured()}
    for text in not_measured():
        print(f"lawf: not measured: {text}", file=sys.stderr)
    return show_figures("start", start_figures(), settings, about)


def _speed(options: argparse.Namespace, settings: Settings) -> int:
    raise UsageError("lawf bench speed is not there yet")
