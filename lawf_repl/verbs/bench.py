"""`lawf bench`: the comparisons with peers, as tables or as one JSON object of schema lawf.bench/1."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lawf_repl.config import Settings
from lawf_repl.conversations import read_text
from lawf_repl.errors import UsageError, first_line
from lawf_repl.verbs.inputs import print_json

if TYPE_CHECKING:  # the real import brings torch
    from lawf_repl.bench.objective import Row, Summary


def run_bench(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0, or 130 if interrupted: then the rows so far are summed up. Raises UsageError for a model that is not the demo's."""
    if options.what != "objective":
        from lawf_repl.verbs.figures import run_figures

        return run_figures(options, settings)
    if "model" in options:
        raise UsageError("lawf bench objective runs on the planted mistakes of the embedded demo model: leave out --model")
    if "adapter" in options:
        raise UsageError("lawf bench objective trains its own adapters: leave out --adapter")
    settings = replace(settings, model=None, adapter=None)  # whatever the config file names
    for name in ("edits", "seeds", "stream"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected a whole number of at least 1, found {getattr(options, name)}")
    asked = [name for name in ("levers", "stream", "plot") if getattr(options, name)] or (["plot"] if options.svg else [])
    if len(asked) > 1:
        raise UsageError(f"--{asked[0]} and --{asked[1]} are two comparisons: give one of them")
    if asked and asked != ["levers"] and options.rows is not None:
        raise UsageError("--rows keeps the readings of the peers' comparison, or of --levers: leave it out here")
    if options.svg is not None and asked != ["plot"]:
        raise UsageError("--svg is the plot as a file: give it with --plot, or alone")
    if options.svg is not None and not options.svg.absolute().parent.is_dir():
        raise UsageError(f"--svg {options.svg}: there is no such folder; make it first")
    verbs = {"levers": _levers, "stream": _stream, "plot": _plot}
    return verbs[asked[0]](options, settings) if asked else _peers(options, settings)


def _peers(options: argparse.Namespace, settings: Settings) -> int:
    from lawf_repl.bench.objective import complete, make_tasks, run, spread, summarize
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import demo_probes

    known = _known(options.rows, complete)
    edits = spread(load_edits(), options.edits)
    engine = load_engine(settings)
    rows: list[Row] = [*known]

    def keep(row: Row) -> None:
        rows.append(row)
        _append(options.rows, row)
        _tell(f"seed {row.seed}  {row.edit}  {row.recipe} ({row.when}): drift {row.drift_nats:.1e} nats after {row.steps} steps")

    interrupted = False
    try:
        rows = run(engine, demo_probes(engine), make_tasks(engine, edits, settings.target_p), options.seeds, settings, keep, known)
    except KeyboardInterrupt:
        interrupted = True
        names = {edit["name"] for edit in edits}
        rows = [row for row in complete(rows) if row.edit in names and row.seed < options.seeds]
    summaries = summarize(rows)
    if settings.json:
        _print(engine.name, options, interrupted, edits=len(edits), summaries=[asdict(one) for one in summaries], rows=[asdict(row) for row in rows])
    elif summaries:
        _show(settings, summaries, ("equal", "end"))
    return 130 if interrupted else 0


def _levers(options: argparse.Namespace, settings: Settings) -> int:
    from lawf_repl.bench.levers import LEVERS, run_levers, summarize_levers
    from lawf_repl.bench.objective import make_tasks, spread
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import demo_probes

    edits = spread(load_edits(), options.edits)
    names, levers = {edit["name"] for edit in edits}, {name for name, _ in LEVERS}
    known = [row for row in _known(options.rows, list) if row.edit in names and row.seed < options.seeds and row.recipe in levers]
    engine = load_engine(settings)
    rows: list[Row] = [*known]

    def keep(row: Row) -> None:
        rows.append(row)
        _append(options.rows, row)
        _tell(f"seed {row.seed}  {row.edit}  {row.recipe}: drift {row.drift_nats:.1e} nats after {row.steps} steps")

    interrupted = False
    try:
        run_levers(engine, demo_probes(engine), make_tasks(engine, edits, settings.target_p), options.seeds, settings, keep, known)
    except KeyboardInterrupt:
        interrupted = True
    summaries = summarize_levers(rows)
    if settings.json:
        _print(engine.name, options, interrupted, edits=len(edits), summaries=[asdict(one) for one in summaries], rows=[asdict(row) for row in rows])
    elif summaries:
        _show(settings, summaries, ("end",))
    return 130 if interrupted else 0


def _stream(options: argparse.Namespace, settings: Settings) -> int:
    from lawf_repl.bench.levers import StreamRow, run_stream
    from lawf_repl.bench.objective import spread
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import demo_probes
    from lawf_repl.ui.bench import stream_table
    from lawf_repl.verbs.story import Story

    edits = spread(load_edits(), options.stream)
    engine = load_engine(settings)
    rows: list[StreamRow] = []
    interrupted = False
    try:
        for row in run_stream(engine, demo_probes(engine), edits, settings):
            rows.append(row)
            _tell(f"{row.corrections}  {row.edit}: {row.hold:.0%} hold, drift {row.drift_nats:.1e} nats, {row.seconds:.0f} s")
    except KeyboardInterrupt:
        interrupted = True
    if settings.json:
        _print(engine.name, options, interrupted, edits=len(edits), stream=[asdict(row) for row in rows])
    elif rows:
        story = Story(settings)
        story.console.print(stream_table(rows, story.theme))
    return 130 if interrupted else 0


def _plot(options: argparse.Namespace, settings: Settings) -> int:
    from lawf_repl.bench.curves import Point, curves, run_curves
    from lawf_repl.bench.objective import make_tasks, spread
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import demo_probes
    from lawf_repl.ui.plot import character_plot, svg_plot
    from lawf_repl.verbs.story import Story

    edits = spread(load_edits(), options.edits)
    engine = load_engine(settings)
    points: list[Point] = []

    def keep(point: Point) -> None:
        points.append(point)
        _tell(f"{point.edit}  {point.recipe} at {point.at:g}: least p {point.min_p:.3f}, drift {point.drift_nats:.1e} nats")

    interrupted = False
    try:
        run_curves(engine, demo_probes(engine), make_tasks(engine, edits, settings.target_p), settings, keep)
    except KeyboardInterrupt:
        interrupted = True
    lines = curves(points)
    if options.svg is not None and lines:
        try:
            options.svg.write_text(svg_plot(lines), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--svg {options.svg}: cannot be written: {error.strerror or error}") from error
    if settings.json:
        _print(engine.name, options, interrupted, edits=len(edits), curves=lines, points=[asdict(point) for point in points])
    elif lines and (options.plot or options.svg is None):
        story = Story(settings)
        story.console.print(character_plot(lines, min(story.console.width, 120), 30), markup=False, highlight=False, no_wrap=True)
    return 130 if interrupted else 0


def _known(path: Path | None, whole: Callable[[list[Row]], list[Row]]) -> list[Row]:
    """What an earlier run left in the file, of that what is `whole`, which alone is left in it. Raises UsageError for one of something else."""
    from lawf_repl.bench.objective import read_rows

    if path is None or not path.exists():
        return []
    try:
        known = whole(read_rows(read_text(path)))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} does not hold the readings of a bench: {first_line(error)}; name another file") from error
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in known), encoding="utf-8")
    return known


def _append(path: Path | None, row: Row) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def _tell(text: str) -> None:
    print(f"lawf: {text}", file=sys.stderr, flush=True)


def _print(model: str, options: argparse.Namespace, interrupted: bool, **found: object) -> None:
    print_json({"schema": "lawf.bench/1", "bench": "objective", "model": model, "seeds": options.seeds, "complete": not interrupted,
                "versions": versions(), "threads": threads(), **found})


def _show(settings: Settings, summaries: Sequence[Summary], readings: Sequence[str]) -> None:
    from lawf_repl.ui.bench import summary_table
    from lawf_repl.verbs.story import Story

    story = Story(settings)
    for when in readings:
        story.console.print(summary_table([one for one in summaries if one.when == when], when, story.theme))
        story.console.print()


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    return {name: version(name) for name in ("torch", "transformers", "peft")} | {"python": sys.version.split()[0]}


def threads() -> int:
    import torch  # late: the command line starts without it

    return torch.get_num_threads()
