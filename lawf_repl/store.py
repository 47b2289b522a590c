"""Session files: JSON Lines, appended to and never rewritten in place, readable without a model.

Line 1 is the header, every other line an event {"type", "at", ...}. A line counts once its newline is on the disk, so a
process killed at any moment loses at most the event that it was writing. Beside NAME.jsonl lie NAME.lock, which keeps two
writers apart, and NAME.adapter/, a peft directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lawf_repl import __version__
from lawf_repl.errors import SessionError
from lawf_repl.records import Anchor, Completion, Correction, Token

if TYPE_CHECKING:
    from filelock import BaseFileLock

Event = dict[str, Any]
Header = dict[str, Any]
Migration = Callable[[Header, list[Event]], tuple[Header, list[Event]]]
T = TypeVar("T")

SCHEMA = 1
MIGRATIONS: dict[int, Migration] = {}  # n: what turns a session of schema n into one of schema n + 1
EVENT_TYPES = frozenset({"prompt", "completion", "correction", "undo", "accept", "training", "rerun", "scorecard",
                         "adapter", "export", "note"})
MODEL_KEYS = ("id", "revision", "config_sha256", "tokenizer_sha256", "template_sha256", "dtype")
SUFFIX = ".jsonl"
MAX_LINE_BYTES = 50_000_000
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}  # strict JSON has no word for these
BINARY = getattr(os, "O_BINARY", 0)  # exists where newlines would be translated


@dataclass(frozen=True)
class LoadedSession:
    """A session as read: events in the order in which they happened, `dropped` says what a cut last line was."""

    header: Header
    events: tuple[Event, ...]
    dropped: str | None = None


class SessionFile:
    """An open session that events are appended to; safe to use from several threads.

    An event that could not be written leaves the file as it was before, and the file stays usable: append again, or
    save elsewhere.
    """

    def __init__(self, path: Path, loaded: LoadedSession, descriptor: int, lock: BaseFileLock) -> None:
        """Takes over an open descriptor and a held lock; use `create` or `open_to_append`."""
        self.path = path
        self.loaded = loaded  # what stood in the file when it was opened
        self._descriptor: int | None = descriptor
        self._lock = lock
        self._end = os.fstat(descriptor).st_size  # bytes up to here are whole lines
        self._torn = False                        # bytes beyond `_end` may exist
        self._turn = threading.RLock()

    @classmethod
    def create(cls, path: Path, model: Mapping[str, Any]) -> SessionFile:
        """A new session. `model` holds what is known of MODEL_KEYS. Raises SessionError, also where `path` exists."""
        path = Path(path)
        header: Header = {"lawf_session": SCHEMA, "id": uuid.uuid4().hex, "created": _now(), "lawf_version": __version__,
                          "model": {key: model.get(key) for key in MODEL_KEYS} | dict(model)}
        line = _line(header)
        with _releasing(_acquire(path)) as lock, _clear_errors(path, "create"):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
            except FileExistsError:
                raise SessionError(f"session {path} exists already; choose another name or remove it first") from None
            session = cls(path, LoadedSession(header, ()), descriptor, lock)
            try:
                session._write(line)
                _sync_directory(path.parent)
            except OSError:
                os.close(descriptor)
                path.unlink()  # ours, and without a whole header it is no session
                raise
        return session

    def append(self, event_type: str, /, **values: Any) -> Event:
        """Writes one event to the disk and gives it back; texts may hold any character, numbers need not be finite.

        Raises SessionError if it could not be written, ValueError or TypeError for an event that is none.
        """
        if event_type not in EVENT_TYPES or not values.keys().isdisjoint({"type", "at"}):
            raise ValueError(f"expected an event type of {sorted(EVENT_TYPES)} without own type and at, found {event_type!r}")
        event: Event = {"type": event_type, "at": _now(), **values}
        line = _line(event)
        if len(line) > MAX_LINE_BYTES:
            raise SessionError(f"session {self.path}: a {event_type} event of {len(line)} bytes is above 50 MB and was not saved")
        with self._turn, _clear_errors(self.path, "write to"):
            self._write(line)
        return event

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            raise SessionError(f"session {self.path} is closed; open it again to go on")
        if os.fstat(self._descriptor).st_nlink == 0:
            raise SessionError(f"session {self.path} was removed while in use; save it under another name")
        self._mend()
        self._torn = True
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest):]
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):  # tried again before the next event
                self._mend()
            raise
        self._end += len(line)
        self._torn = False

    def _mend(self) -> None:
        """Cuts off what an event that failed, or was interrupted, has left behind."""
        if self._torn and self._descriptor is not None:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False

    def close(self) -> None:
        """Closes the file and lets other writers in; a second call does nothing."""
        with self._turn:
            if self._descriptor is not None:
                with suppress(OSError):  # a reader drops the cut line as well
                    self._mend()
                os.close(self._descriptor)
                self._descriptor = None
                self._lock.release()

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_to_append(path: Path) -> SessionFile:
    """An existing session to go on with, its `loaded` says what stands in it; raises SessionError.

    A cut last line or an older schema is put right first, by replacing the whole file.
    """
    path = Path(path)
    real = Path(os.path.realpath(path))  # a link must stay one
    _parse_header(path, _read_lines(real)[0][0])  # before the lock: what is no session gets no lock file beside it
    with _releasing(_acquire(path)) as lock, _clear_errors(path, "open"):
        lines, tail = _read_lines(real)
        loaded = _parse(path, lines, tail)
        if _parse_header(path, lines[0])["lawf_session"] != SCHEMA:
            _replace(real, b"".join(_line(one) for one in (loaded.header, *loaded.events)))
        elif tail:
            _replace(real, b"".join(lines))
        descriptor = os.open(real, os.O_WRONLY | os.O_APPEND | BINARY)
        return SessionFile(path, loaded, descriptor, lock)


def load(path: Path) -> LoadedSession:
    """A session file, migrated to the newest schema in memory; needs no lock and no model. Raises SessionError."""
    path = Path(path)
    return _parse(path, *_read_lines(path))


def adapter_path(path: Path) -> Path:
    """Where the adapter of a session lies: NAME.adapter beside NAME.jsonl."""
    return _beside(Path(path), ".adapter")


def lock_path(path: Path) -> Path:
    """The lock of a session: NAME.lock beside NAME.jsonl. It stays after use, and holds nothing."""
    return _beside(Path(path), ".lock")


def directory_sha256(directory: Path) -> str:
    """Hash of a directory's files by content and relative name, the same wherever it lies. Raises SessionError.

    It is the sha256 of what `sha256sum` prints for the files in the order of their names.
    """
    directory = Path(directory)
    total = hashlib.sha256()
    with _clear_errors(directory, "read"):
        names = sorted(found.relative_to(directory).as_posix() for found in directory.rglob("*") if found.is_file())
        if not names:
            raise SessionError(f"adapter {directory}: expected a directory with files, found none; train or save the adapter first")
        for name in names:
            with open(directory / name, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            total.update(f"{digest}  ".encode() + os.fsencode(name) + b"\n")
    return total.hexdigest()


# Lines

def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _line(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False)
    return text.encode("ascii") + b"\n"  # ASCII, so that any text survives, lone surrogates too


def _finite(value: Any) -> Any:
    """`value` with every number that JSON cannot write turned into its name."""
    if isinstance(value, float):
        return value if value - value == 0 else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _read_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Whole lines with their newlines, and the cut last one, empty if there is none."""
    lines: list[bytes] = []
    with _clear_errors(path, "read"):
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
            raise SessionError(f"session {path} is not a regular file; name a session file")
        with open(path, "rb") as source:
            while line := source.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise SessionError(f"session {path}: line {len(lines) + 1} is longer than 50 MB, which lawf never writes")
                if not line.endswith(b"\n"):
                    return _not_empty(path, lines), line
                lines.append(line)
    return _not_empty(path, lines), b""


def _not_empty(path: Path, lines: list[bytes]) -> list[bytes]:
    if not lines:
        raise SessionError(f"{path} is not a lawf session: expected a header in line 1, found no whole line")
    return lines


def _parse(path: Path, lines: list[bytes], tail: bytes) -> LoadedSession:
    header = _parse_header(path, lines[0])
    events = [_parse_event(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    for schema in range(header["lawf_session"], SCHEMA):
        header, events = MIGRATIONS[schema](header, events)
        header = header | {"lawf_session": schema + 1}
    dropped = None
    if tail:
        begun = re.match(rb'\{"type": "(\w+)"', tail)
        kind = begun[1].decode() if begun else "unknown"
        dropped = f"line {len(lines) + 1} was cut after {len(tail)} bytes and is dropped (event: {kind})"
    return LoadedSession(header, tuple(events), dropped)


def _parse_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SessionError(f"session {path}: line {number} is not UTF-8 (byte {error.start}); {_MEND}") from None
    except (ValueError, RecursionError):
        raise SessionError(f"session {path}: line {number} is damaged: expected one JSON object; {_MEND}") from None
    if not isinstance(value, dict):
        raise SessionError(f"session {path}: line {number} is damaged: expected a JSON object, found another value; {_MEND}")
    return value


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        header = _parse_object(path, 1, line)
    except SessionError:
        header = {}
    schema = header.get("lawf_session")
    if type(schema) is not int or schema < 1:
        raise SessionError(f'{path} is not a lawf session: expected {{"lawf_session": {SCHEMA}, ...}} in line 1')
    if schema > SCHEMA:
        raise SessionError(f"session {path} has schema {schema}; lawf {__version__} reads up to {SCHEMA}; update lawf to read it")
    if not all(isinstance(header.get(key), str) for key in ("id", "created", "lawf_version")) or not isinstance(header.get("model"), dict):
        raise SessionError(f"session {path}: line 1 is damaged: expected id, created, lawf_version and model; {_MEND}")
    return header


def _parse_event(path: Path, number: int, line: bytes) -> Event:
    event = _parse_object(path, number, line)
    kind = event.get("type")
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise SessionError(f"session {path}: line {number} is damaged: unknown event type {ascii(kind)[:40]}; {_MEND}")
    if not isinstance(event.get("at"), str):
        raise SessionError(f"session {path}: line {number} is damaged: expected a time in \"at\"; {_MEND}")
    return event


_MEND = "restore the file from a copy, or remove that line"


# Files

def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + suffix)


@contextmanager
def _clear_errors(path: Path, action: str) -> Iterator[None]:
    """Turns what the system refuses into one line: full disk, no permission, read-only, no such file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SessionError(f"cannot {action} {path}: {reason}; check the path, its permissions and the free space") from error


def _acquire(path: Path) -> BaseFileLock:
    from filelock import FileLock, Timeout  # late: readers need no lock

    if not path.parent.is_dir():  # a lock would make the folder, and a slip of the pen with it
        raise SessionError(f"folder {path.parent} of session {path.name} does not exist; create it or choose another")
    lock = FileLock(str(lock_path(Path(os.path.realpath(path)))), timeout=0, mode=0o600, thread_local=False)
    with _clear_errors(path, "lock"):
        try:
            lock.acquire()
        except Timeout:
            raise SessionError(f"session {path} is in use by another lawf; close it there or choose another name") from None
    return lock


@contextmanager
def _releasing(lock: BaseFileLock) -> Iterator[BaseFileLock]:
    """Lets go of a lock if the body fails; otherwise the body has passed it on."""
    passed_on = False
    try:
        yield lock
        passed_on = True
    finally:
        if not passed_on:
            lock.release()


def _replace(path: Path, content: bytes) -> None:
    """Replaces a whole file; a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
        with open(descriptor, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes a new name in a directory last, as far as the file system lets one."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Records and JSON

def to_json(record: Any) -> Any:
    """A record of records.py as plain JSON values: a dict of its fields, a completion's text beside its tokens."""
    if is_dataclass(record):
        values = {one.name: to_json(getattr(record, one.name)) for one in fields(record)}
        return values | {"text": record.text} if isinstance(record, Completion) else values
    if isinstance(record, frozenset):
        return sorted(record)
    return [to_json(item) for item in record] if isinstance(record, tuple) else _finite(record)


def from_json(kind: type[T], value: Any) -> T:
    """The record that `to_json` was given. Raises SessionError that names the field which is missing or wrong."""
    record: T = _read(kind, value, kind.__name__)
    if isinstance(record, Completion) and _units(value.get("text", record.text)) != _units(record.text):
        raise SessionError("Completion: the text differs from the tokens' text; the session is damaged")
    return record


def token_to_json(token: Token) -> dict[str, Any]:
    return dict(to_json(token))


def token_from_json(value: Any) -> Token:
    return from_json(Token, value)


def completion_to_json(completion: Completion) -> dict[str, Any]:
    return dict(to_json(completion))


def completion_from_json(value: Any) -> Completion:
    return from_json(Completion, value)


def correction_to_json(correction: Correction) -> dict[str, Any]:
    return dict(to_json(correction))


def correction_from_json(value: Any) -> Correction:
    return from_json(Correction, value)


def anchor_to_json(anchor: Anchor) -> dict[str, Any]:
    return dict(to_json(anchor))


def anchor_from_json(value: Any) -> Anchor:
    return from_json(Anchor, value)


def _units(text: Any) -> bytes:
    """UTF-16, as JSON escapes write it: two surrogates that meet are one character there."""
    return text.encode("utf-16-le", "surrogatepass") if isinstance(text, str) else b"?"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that an annotation of records.py names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        inner = next(one for one in arguments if one is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (tuple, frozenset) and isinstance(value, list):
        if origin is frozenset or arguments[-1] is Ellipsis:
            return origin(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_read(one, item, where) for one, item in zip(arguments, value, strict=True))
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        # A field that is absent gets its default, so that a record may grow.
        given = {name: _read(one, value[name], f"{where}.{name}") for name, one in _hints(hint).items() if name in value}
        try:
            return hint(**given)
        except TypeError:
            raise SessionError(f"{where}: a field is missing, found {', '.join(given) or 'none'}; the session is damaged") from None
    if hint is float and isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise SessionError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {type(value).__name__}; the session is damaged")
