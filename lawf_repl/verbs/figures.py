"""`lawf bench speed` and `lawf bench start`: ratios against a peer in the same run, as a table or as one JSON object."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from lawf_repl.config import Settings
from lawf_repl.errors import UsageError
from lawf_repl.verbs.inputs import print_json

if TYPE_CHECKING:
    from lawf_repl.bench.figures import Figure
    from lawf_repl.engine.base import Engine


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
    """What `lawf bench speed` measures; with --results also appended to a file, as far as it came."""
    from lawf_repl.verbs.results import append_results, check_results

    if options.results is not None:
        check_results(options.results)
    if options.random is not None and "model" in options:
        raise UsageError("--random and --model are two models: give one of them")
    if "adapter" in options:
        raise UsageError("lawf bench speed measures a base: leave out --adapter")
    settings = replace(settings, adapter=None, model=None if options.random else settings.model)
    from lawf_repl.bench.models import Subject
    from lawf_repl.bench.speed import run_speed

    subject = Subject(settings, options.random)
    source = run_speed(subject, options.only)
    about = machine(subject.engine)
    figures: list[Figure] = []
    code = show_figures("speed", kept(source, figures), settings, about)
    if options.results is not None and figures:
        given = [f"--{name} {getattr(options, name)}" for name in ("model", "random", "device", "dtype", "only") if getattr(options, name, None)]
        append_results(options.results, " ".join(["lawf bench speed", *given]), figures, subject.engine.device.type, about | {"complete": not code})
    return code


def kept(source: Iterable[Figure], figures: list[Figure]) -> Iterator[Figure]:
    """What `source` yields, each put into `figures` as well."""
    for figure in source:
        figures.append(figure)
        yield figure


def machine(engine: Engine) -> dict[str, object]:
    """What was measured, and on what."""
    from lawf_repl.verbs.bench import threads, versions
    from lawf_repl.verbs.results import device_name

    return {"model": engine.name, "device": device_name(engine.device), "dtype": engine.dtype, "threads": threads(), "versions": versions()}
