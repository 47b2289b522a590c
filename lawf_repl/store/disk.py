"""What every part of the store does with files: names beside a session, whole files replaced at once, trouble as one line."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lawf_repl.errors import SessionError

SUFFIX = ".jsonl"
BINARY = getattr(os, "O_BINARY", 0)  # exists where newlines would be translated


def adapter_path(path: Path) -> Path:
    """Where the adapter of a session lies: NAME.adapter beside NAME.jsonl."""
    return beside(Path(path), ".adapter")


def lock_path(path: Path) -> Path:
    """The lock of a session: NAME.lock beside NAME.jsonl. It stays after use, and holds nothing."""
    return beside(Path(path), ".lock")


def remove_lock(path: Path) -> None:
    """Takes away the lock of a name that no session has; where the system does not let one, it stays and does no harm."""
    with suppress(OSError):
        lock_path(path).unlink()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + suffix)


def temporary(path: Path) -> Path:
    """A name beside `path` for what is not whole yet; `temporaries` finds those that a killed process left."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def temporaries(path: Path) -> list[Path]:
    """What was begun for `path` and never finished."""
    begin, end = f".{path.name}.", ".tmp"
    with suppress(OSError):
        return [one for one in path.parent.iterdir() if one.name.startswith(begin) and one.name.endswith(end)]
    return []


def directory_sha256(directory: Path) -> str:
    """Hash of a directory's files by content and relative name, the same wherever it lies. Raises SessionError.

    It is the sha256 of what `sha256sum` prints for the files in the order of their names.
    """
    directory = Path(directory)
    total = hashlib.sha256()
    with clear_errors(directory, "read"):
        names = sorted(found.relative_to(directory).as_posix() for found in directory.rglob("*") if found.is_file())
        if not names:
            raise SessionError(f"adapter {directory}: expected a directory with files, found none; train or save the adapter first")
        for name in names:
            with open(directory / name, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            total.update(f"{digest}  ".encode() + os.fsencode(name) + b"\n")
    return total.hexdigest()


@contextmanager
def clear_errors(path: Path, action: str) -> Iterator[None]:
    """Turns what the system refuses into one line: full disk, no permission, read-only, no such file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SessionError(f"cannot {action} {path}: {reason}; check the path, its permissions and the free space") from error


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a whole file; a reader sees the old one or the new one."""
    new = temporary(path)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
        with open(descriptor, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes a new name in a directory last, as far as the file system lets one."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Brings every file of a directory to the disk."""
    for found in directory.rglob("*"):
        if found.is_file():
            with open(found, "rb") as content, suppress(OSError):  # some systems sync only what is open for writing
                os.fsync(content.fileno())
    sync_directory(directory)
