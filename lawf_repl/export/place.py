"""Outputs appear at their place whole or not at all.

What is written stands in a temporary sibling, NAME.lawf-partial-XXXXXXXX, until it is complete and verified, and is then
renamed. Whatever ends the work earlier, kill -9 too, leaves at most that sibling behind, never half an output at its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lawf_repl.errors import ExportError, first_line

UNWRITTEN = (OSError, SafetensorError)
SESSION = b'{"lawf_session"'  # how such a file begins


def check_place(out: Path, force: bool) -> None:
    """Raise ExportError where nothing may be written to `out`: before any work is done."""
    if not out.name or out.name in (".", ".."):
        raise ExportError(f"{out} is no name for an output: name a folder that does not exist yet")
    if not out.parent.is_dir():
        raise ExportError(f"folder {out.parent} does not exist: create it, or choose another place")
    if _is_session(out):
        raise ExportError(f"{out} is a session and was not touched, nor is it with --force: name another place "
                          "(one adapter from several sessions: lawf train SESSION... --out DIR)")
    if os.path.lexists(out) and not force:
        raise ExportError(f"{out} exists already and was not touched: name another place, or replace it with --force")
    if out.resolve() == Path.cwd().resolve():
        raise ExportError(f"{out} is the current folder: name another place")


def _is_session(path: Path) -> bool:
    """Whether a session's file stands there, which nothing can make again."""
    try:
        with path.open("rb") as file:
            return file.read(len(SESSION)) == SESSION
    except OSError:
        return False


@contextmanager
def placed(out: Path, force: bool = False) -> Iterator[Path]:
    """A path beside `out` to write a file or folder to; renamed to `out` when the body ends without an exception.

    With `force`, what stood at `out` is renamed away first and removed when the new one is in place; should that fail, it comes
    back. Raises ExportError for a place that cannot be written.
    """
    check_place(out, force)
    mark = uuid.uuid4().hex[:8]
    staging = out.with_name(f"{out.name}.lawf-partial-{mark}")
    try:
        yield staging
        _flush(staging)
        _into_place(staging, out, out.with_name(f"{out.name}.lawf-old-{mark}"), force)
    except UNWRITTEN as error:
        raise ExportError(f"{out} could not be written: {reason(error)}; check the path, its permissions and the free space") from error
    finally:
        _remove(staging)


@contextmanager
def working() -> Iterator[Path]:
    """A folder for what an export needs until it has ended. Raises ExportError where nothing can be written there."""
    try:
        with tempfile.TemporaryDirectory(prefix="lawf-export-") as name:
            yield Path(name)
    except UNWRITTEN as error:
        raise ExportError(f"what an export needs could not be written to {tempfile.gettempdir()}: {reason(error)}; make room there, or name "
                          "another folder with the variable TMPDIR") from error


def reason(error: Exception) -> str:
    """What the system said, in one line; the libraries that write tensors have errors of their own."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _into_place(staging: Path, out: Path, old: Path, force: bool) -> None:
    check_place(out, force)  # what appeared there meanwhile is somebody's
    there = os.path.lexists(out)
    try:
        if there:
            os.rename(out, old)
        os.rename(staging, out)
    except BaseException:  # Ctrl-C, too
        if os.path.lexists(old) and not os.path.lexists(out):
            os.rename(old, out)
        raise
    _sync(out.parent)
    if there:
        _remove(old)


def _flush(staging: Path) -> None:
    """What is renamed must be on the disk before its name is."""
    for path in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
        _sync(path)


def _sync(path: Path) -> None:
    with suppress(PermissionError, IsADirectoryError):  # some systems open no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
