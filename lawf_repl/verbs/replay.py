"""`lawf replay`: saved sessions again, held against their files."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.errors import LawfError, SessionError, UsageError
from lawf_repl.places import find_all, sessions_place
from lawf_repl.ui.layout import visible
from lawf_repl.ui.render import shorten
from lawf_repl.verbs.inputs import interruptible, is_terminal, print_json
from lawf_repl.verbs.story import Story

if TYPE_CHECKING:  # the real import brings torch
    from lawf_repl.agreement import Divergence, Row
    from lawf_repl.engine.base import Engine

SHOWN = 5  # alternatives of a place where it diverged
LOADING = ("model", "revision", "device", "dtype", "device_map", "quantize", "trust_remote_code", "offline", "template_args")


def run_replay(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0 if every session went as recorded, 1 if one did not, 2 if one could not be read, 130 if interrupted."""
    paths, missing = find_all(options.session, sessions_place(getattr(options, "sessions", None), os.environ).path)
    if options.junit is not None and not options.junit.absolute().parent.is_dir():
        raise UsageError(f"--junit {options.junit}: there is no such folder; make it first")
    if "adapter" in options:
        raise UsageError("lawf replay loads the adapters that the sessions have: leave out --adapter")
    from lawf_repl.agreement import Row

    rows = [Row(text, "error", error=reason) for text, reason in missing]
    interrupted = False
    story = Story(settings)
    tell = (lambda row: None) if settings.json else teller(story)
    with interruptible() as stop, progress_of(paths, settings, story) as show:
        for row in rows:
            tell(row)
        try:
            for row in replay_all(paths, settings, frozenset(vars(options)), options.retrain, stop):
                rows.append(row)
                show(len(rows) - len(missing))
                tell(row)
        except KeyboardInterrupt:
            interrupted = True
    report(rows, settings, options.junit)
    if interrupted:
        print(f"lawf: interrupted after {len(rows) - len(missing)} of {len(paths)} sessions", file=sys.stderr)
        return 130
    return 1 if any(row.status in ("diverged", "changed") for row in rows) else 2 if any(row.status == "error" for row in rows) else 0


def replay_all(paths: Sequence[Path], settings: Settings, given: frozenset[str], retrain: bool, stop: Callable[[], bool]) -> Iterator[Row]:
    """A row for each; a model is loaded once for the sessions in a row that are of it. A file that cannot be read is a row too."""
    from lawf_repl.agreement import Row
    from lawf_repl.measure.prompts import load_probes
    from lawf_repl.replay import replay, settings_for

    engine: Engine | None = None
    key: tuple[object, ...] = ()
    for path in paths:
        try:
            loaded = store.load(path)
            chosen = settings_for(loaded, settings, sorted(given))
            wanted = tuple(getattr(chosen, name) for name in LOADING)
            if engine is None or wanted != key:
                engine = None  # before the next one is loaded
                engine, key = load(chosen), wanted
            yield replay(path, engine, chosen, load_probes(engine, chosen), retrain, stop, loaded)
        except LawfError as error:
            yield Row(str(path), "error", error=str(error))


def load(settings: Settings) -> Engine:
    from lawf_repl.engine.base import load_engine

    return load_engine(replace(settings, adapter=None))


def teller(story: Story) -> Callable[[Row], None]:
    """Prints a row as soon as it is there."""
    from lawf_repl.agreement import TIE
    from lawf_repl.ui.replay import row_view

    return lambda row: story.console.print(row_view(row, story.theme, TIE))


@contextmanager
def progress_of(paths: Sequence[Path], settings: Settings, story: Story) -> Iterator[Callable[[int], None]]:
    """A bar that says how many are done and which one is at work, where there is a terminal to draw it on.

    Where rows go to the same terminal it is one with them, and stays below them.
    """
    if settings.plain or not is_terminal(sys.stderr):
        yield lambda done: None
        return
    console = story.console if story.is_terminal and not settings.json else Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        names = [shorten(visible(path.name), 30) for path in paths]
        task = bar.add_task(names[0], total=len(paths))
        yield lambda done: bar.update(task, completed=done, description=[*names, ""][done], refresh=True)


def report(rows: Sequence[Row], settings: Settings, junit: Path | None) -> None:
    """JSON or the last line, and the JUnit file. Raises SessionError where that cannot be written."""
    from lawf_repl.agreement import TIE, row_json
    from lawf_repl.ui.replay import summary

    if settings.json:
        print_json({"schema": "lawf.replay/1", "ok": all(row.ok for row in rows), "tolerance": TIE, "rows": [row_json(row) for row in rows]})
    elif len(rows) != 1:
        print(summary(rows))
    if junit is not None:
        try:
            junit.write_bytes(junit_xml(rows))
        except OSError as error:
            raise SessionError(f"--junit {junit}: cannot be written: {error.strerror or error}") from error


def junit_xml(rows: Sequence[Row]) -> bytes:
    """The rows as JUnit's XML: a divergence is a failure, what could not be replayed, or only on another model, an error."""
    failures, errors = (sum(row.status in which for row in rows) for which in (("diverged",), ("changed", "error")))
    suite = ElementTree.Element("testsuite", name="lawf replay", tests=str(len(rows)), failures=str(failures), errors=str(errors), skipped="0",
                                time=f"{sum(row.seconds for row in rows):.3f}")
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname="lawf.replay", name=_xml(row.session), time=f"{row.seconds:.3f}")
        if not row.ok:
            kind = ElementTree.SubElement(case, "failure" if row.status == "diverged" else "error", type=row.status, message=_xml(message(row)))
            found = row.first_divergence
            kind.text = _xml("\n".join([*row.changed, *(told(found) if found else [])]))
        if row.ties:
            out = ElementTree.SubElement(case, "system-out")
            out.text = _xml("\n".join(f"tie: {tie.where}, token {tie.position}: {tie.then!r} then, {tie.now!r} now" for tie in row.ties))
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)) + b"\n"


def message(row: Row) -> str:
    """Why a session is not ok, in one line."""
    found = row.first_divergence
    if found is None:
        return "; ".join([*row.changed[:1], row.error])
    at = "" if found.position is None else f" at token {found.position}"
    return f"{found.where} diverges{at}" + (f"; {row.changed[0]}" if row.changed else "")


def told(found: Divergence) -> list[str]:
    """A divergence in lines: both texts, and both distributions where they are known."""
    lines = [f"line {found.line} of the file: {found.prompt}", f"then: {found.then}", f"now: {found.now}"]
    for name, token in (("then", found.then_token), ("now", found.now_token)):
        if token is not None:
            lines.append(f"p {name}: " + ", ".join(f"{one.text!r} {one.p:.4f}" for one in token.alternatives[:SHOWN] or (token,)))
    return lines + [found.note] * bool(found.note)


def _xml(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", lambda found: visible(found[0]), text)
