"""`lawf report`: sessions as one page."""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from pathlib import Path

from lawf_repl.chronicle import Chronicle, read_chronicle
from lawf_repl.config import Settings
from lawf_repl.errors import LawfError, UsageError
from lawf_repl.places import find_all, sessions_place
from lawf_repl.report.page import page
from lawf_repl.store import SUFFIX
from lawf_repl.store.disk import clear_errors
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import print_json
from lawf_repl.verbs.sessions import reason


def run_report(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0, or 2 where a session could not be read; the others are in the page. Raises UsageError where it cannot be put there."""
    out: Path = options.out
    refuse(out, options.force)
    paths, failed = find_all(options.session, sessions_place(getattr(options, "sessions", None), os.environ).path)
    chronicles: list[Chronicle] = []
    unread = [(Path(name).name, "there is no session") for name, _ in failed]  # the page may be sent to others: it names no folders
    first: LawfError | None = None
    for path in paths:
        try:
            chronicles.append(read_chronicle(path))
        except LawfError as error:
            first = first or error
            failed.append((path.name, str(error)))
            unread.append((path.name, reason(str(error), path)))
    if first and not chronicles:
        raise first
    content = page(chronicles, unread).encode()
    write(out, content, options.force)
    if settings.json:
        print_json({"schema": "lawf.report/1", "out": str(out), "bytes": len(content), "sessions": [str(one.path) for one in chronicles],
                    "failed": [{"session": name, "error": said} for name, said in failed]})
    else:
        count = len(chronicles)
        print(visible(f"{out}: {count} session{'' if count == 1 else 's'}, {len(content) // 1000 + 1} kB"))
        for _, said in failed:
            print(f"lawf: {visible(said)}", file=sys.stderr)
    return 2 if failed else 0


def refuse(out: Path, force: bool) -> None:
    """Raises UsageError where the page cannot or must not be put."""
    if out.is_dir():
        raise UsageError(f"-o {out}: expected a file, found a folder; name a file in it, for example {out / 'report.html'}")
    if out.suffix == SUFFIX:
        raise UsageError(f"-o {out}: expected a page, found the name of a session file; name it, for example, report.html")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"-o {out}: there is no such folder; make it first")
    if os.path.lexists(out) and not force:
        raise UsageError(f"-o {out} exists already: name another file, or replace it with --force")


def write(out: Path, content: bytes, force: bool) -> None:
    """The whole page or nothing; readable by whom the user's own files are. Raises UsageError, SessionError."""
    target = Path(os.path.realpath(out))
    new = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    with clear_errors(out, "write the report to"):
        try:
            new.write_bytes(content)
            refuse(out, force)  # something may have come there since
            os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
