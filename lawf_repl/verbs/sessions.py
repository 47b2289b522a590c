"""`lawf sessions`: what is in a folder of sessions, sorted, filtered and verified."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.digest import Digest, read_digest
from lawf_repl.errors import SessionError, UsageError
from lawf_repl.places import Place, sessions_in, sessions_place
from lawf_repl.selection import kept_by, sorted_by
from lawf_repl.store import Finding
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import print_json
from lawf_repl.verbs.story import Story

WIDEST = 1000  # cells: no table is wider
Verified = dict[Path, list[Finding]]  # what is wrong with each file


def run_sessions(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0, or 1 where --verify finds that a file does not hold. Raises UsageError for a folder or a filter that is none."""
    keep = kept_by(options.filter)
    place = folder_of(options)
    rows = sorted_by([row for row in map(read, sessions_in(place.path)) if keep(row)], options.sort, options.reverse)
    verified: Verified | None = {row.path: store.verify(row.path) for row in rows} if options.verify else None
    if settings.json:
        print_json({"schema": "lawf.sessions/1", "folder": str(place.path), "sessions": [row_json(row, verified) for row in rows]})
    else:
        tell(rows, place, verified, settings)
    return 1 if verified is not None and any(verified.values()) else 0


def folder_of(options: argparse.Namespace) -> Place:
    """The folder to list. Raises UsageError where it was named and is not there, or is no folder."""
    given: Path | None = options.folder
    if given is not None and "sessions" in options:
        raise UsageError("expected one folder: DIR or --sessions, not both")
    if given is None:
        return sessions_place(getattr(options, "sessions", None), os.environ)
    path = Path(os.path.expanduser(given))
    if not path.is_dir():
        found = "a file; lawf show reads one session" if path.exists() else "nothing there"
        raise UsageError(f"{given}: expected a folder of sessions, found {found}")
    return Place(path, "DIR")


def read(path: Path) -> Digest:
    """A row, also for what is no session: then its troubles say why."""
    try:
        return read_digest(path)
    except SessionError as error:
        return Digest(path, troubles=(Finding(None, reason(str(error), path)),))


def reason(text: str, path: Path) -> str:
    """What is wrong with a file, without its name, which stands beside it."""
    for begin in (f"session {path}: ", f"session {path} ", f"{path} "):
        text = text.removeprefix(begin)
    return text


def tell(rows: Sequence[Digest], place: Place, verified: Verified | None, settings: Settings) -> None:
    """The table, and one line for everything that is wrong with a file: what reading it showed, or all that --verify found."""
    from lawf_repl.ui.sessions import sessions_table, summary

    story = Story(settings)
    if not rows:
        print(f"no session in {visible(str(place.path))}" if not sessions_in(place.path) else "no session matches")
        return
    held = None if verified is None else {path for path, found in verified.items() if not found}
    width = story.console.width if story.is_terminal else None
    if width is None:
        story.console.width = WIDEST
    story.console.print(sessions_table(rows, story.theme, width, held))
    wrong = [(row.path, one) for row in rows for one in (row.troubles if verified is None else verified[row.path])]
    lines = [visible(f"{path.name}: {reason(str(one), path)}") for path, one in wrong]
    if lines:
        print("", *lines, sep="\n")
    if verified is not None:
        print(summary(len(rows), sum(not found for found in verified.values())))


def row_json(row: Digest, verified: Verified | None) -> dict[str, Any]:
    """A row of schema lawf.sessions/1."""
    found = None if verified is None else verified[row.path]
    return {"path": str(row.path), "name": row.name, "model": row.model or None, "prompt": row.prompt or None, "prompts": row.prompts,
            "accepted": row.cases, "anchors": row.anchors, "trainings": row.trainings, "fixed": row.fixed, "compared": row.compared,
            "right": row.right, "drift_nats": row.drift, "probes": row.probes, "date": row.created or None, "changed": row.changed or None,
            "readable": row.readable, "troubles": [{"line": one.line, "text": one.text} for one in row.troubles],
            **({} if found is None else {"holds": not found, "findings": [{"line": one.line, "text": one.text} for one in found]})}
