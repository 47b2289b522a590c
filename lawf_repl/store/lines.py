"""The lines of a session file: header and events as bytes and back, the sum that ties each to the one before, older schemas.

An event ends in "sum": the beginning of the sha256 of the sum before it and of the line without its own. So a byte that
flipped, and a line that was changed, moved or taken out, is noticed and named. A line without a sum is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lawf_repl import __version__
from lawf_repl.errors import SessionError
from lawf_repl.store.disk import SUFFIX as SUFFIX
from lawf_repl.store.disk import clear_errors
from lawf_repl.store.values import finite

Event = dict[str, Any]
Header = dict[str, Any]
Migration = Callable[[Header, list[Event]], tuple[Header, list[Event]]]

SCHEMA = 1
MIGRATIONS: dict[int, Migration] = {}  # n: what turns a session of schema n into one of schema n + 1
EVENT_TYPES = frozenset({"prompt", "completion", "correction", "undo", "accept", "training", "rerun", "scorecard",
                         "adapter", "export", "note"})
MODEL_KEYS = ("id", "revision", "config_sha256", "tokenizer_sha256", "template_sha256", "dtype")
OWN_KEYS = frozenset({"type", "at", "sum"})  # of an event, not its giver's to set
MAX_LINE_BYTES = 50_000_000
LONG = b"too long\n"  # what stands for a line above that
RESTORE = "restore the file from a copy"
MEND = f"{RESTORE}; lawf show still reads the other lines"  # no line can be taken out: each is tied to the one before
TOO_LONG = "is longer than 50 MB, which lawf never writes"
_SUM = re.compile(rb', "sum": "([0-9a-f]{16})"\}\n?$')
_SUM_BYTES = 40  # at the end of a line, that hold its sum: a long line need not be searched


@dataclass(frozen=True)
class LoadedSession:
    """A session as read: events in the order in which they happened, `dropped` says what a cut last line was."""

    header: Header
    events: tuple[Event, ...]
    dropped: str | None = None
    altered: tuple[int, ...] = ()  # lines that are not as lawf wrote them


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def to_line(value: Mapping[str, Any], before: bytes | None = None) -> bytes:
    """One line; with `before`, the line in front of it, its sum is put at its end."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), allow_nan=False)
    line = text.encode("ascii")  # ASCII, so that any text survives, lone surrogates too
    if before is not None:
        line = line[:-1] + b', "sum": "' + _sum(before, line) + b'"}'
    return line + b"\n"


def is_altered(line: bytes, before: bytes) -> bool:
    """Whether a line has a sum and it is another than that of what stands there, behind `before`."""
    stated = _stated(line)
    return stated is not None and stated[1] != _sum(before, line[:stated.start()] + b"}")


def has_sum(line: bytes) -> bool:
    """Whether a line says what its sum is."""
    return _stated(line) is not None


def _stated(line: bytes) -> re.Match[bytes] | None:
    return _SUM.search(line, max(0, len(line) - _SUM_BYTES))


def _sum(before: bytes, line: bytes) -> bytes:
    stated = _stated(before)
    link = stated[1] if stated else hashlib.sha256(before).hexdigest()[:16].encode()
    return hashlib.sha256(link + line).hexdigest()[:16].encode()


def to_lines(header: Header, events: tuple[Event, ...]) -> list[bytes]:
    """A whole session anew."""
    lines = [to_line(header)]
    for event in events:
        lines.append(to_line(event, lines[-1]))
    return lines


def read_lines(path: Path, skip_long: bool = False) -> tuple[list[bytes], bytes]:
    """Whole lines with their newlines, and the cut last one, empty if there is none. Raises SessionError.

    A line that is too long is refused, or with `skip_long` LONG stands in its place; it is never held in memory.
    """
    lines: list[bytes] = []
    with clear_errors(path, "read"):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise SessionError(f"session {path} is not a regular file; name a session file")
        with open(path, "rb") as source:
            while line := source.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    if not skip_long or not lines:
                        raise SessionError(f"session {path}: line {len(lines) + 1} {TOO_LONG}; {MEND if lines else RESTORE}")
                    while line and not line.endswith(b"\n"):
                        line = source.readline(MAX_LINE_BYTES)
                    line = LONG
                if not line.endswith(b"\n"):
                    return _not_empty(path, lines), line
                lines.append(line)
    return _not_empty(path, lines), b""


def _not_empty(path: Path, lines: list[bytes]) -> list[bytes]:
    if not lines:
        raise SessionError(f"{path} is not a lawf session: expected a header in line 1, found no whole line")
    return lines


def parse(path: Path, lines: list[bytes], tail: bytes) -> LoadedSession:
    """What the lines say, in the newest schema. Raises SessionError that names the line which is damaged."""
    header = parse_header(path, lines[0])
    events = [parse_event(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    altered = tuple(number for number, line in enumerate(lines[1:], start=2) if is_altered(line, lines[number - 2]))
    for schema in range(header["lawf_session"], SCHEMA):
        header, events = MIGRATIONS[schema](header, events)
        header = header | {"lawf_session": schema + 1}
    return LoadedSession(header, tuple(events), dropped(lines, tail), altered)


def dropped(lines: list[bytes], tail: bytes) -> str | None:
    """What a cut last line was; None where there is none."""
    if not tail:
        return None
    begun = re.match(rb'\{"type": "(\w+)"', tail)
    kind = begun[1].decode() if begun else "unknown"
    return f"line {len(lines) + 1} was cut after {len(tail)} bytes and is dropped (event: {kind})"


def parse_header(path: Path, line: bytes) -> Header:
    """Line 1. Raises SessionError where it is no header, damaged, or of a newer schema."""
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
        raise SessionError(f"session {path}: line 1 is damaged: expected id, created, lawf_version and model; {RESTORE}")
    return header


def parse_event(path: Path, number: int, line: bytes) -> Event:
    """Any other line, its sum left out. Raises SessionError."""
    if line is LONG:
        raise SessionError(f"session {path}: line {number} {TOO_LONG}; {MEND}")
    event = _parse_object(path, number, line)
    event.pop("sum", None)
    kind = event.get("type")
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise SessionError(f"session {path}: line {number} is damaged: unknown event type {ascii(kind)[:40]}; {MEND}")
    if not isinstance(event.get("at"), str):
        raise SessionError(f"session {path}: line {number} is damaged: expected a time in \"at\"; {MEND}")
    return event


def _parse_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SessionError(f"session {path}: line {number} is not UTF-8 (byte {error.start}); {MEND}") from None
    except (ValueError, RecursionError):
        raise SessionError(f"session {path}: line {number} is damaged: expected one JSON object; {MEND}") from None
    if not isinstance(value, dict):
        raise SessionError(f"session {path}: line {number} is damaged: expected a JSON object, found another value; {MEND}")
    return value
