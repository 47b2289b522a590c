"""Whatever can be read of a session file: to show and to list sessions, a damaged line must not hide the others."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lawf_repl.errors import SessionError
from lawf_repl.store import lines as form
from lawf_repl.store.lines import Event, Header
from lawf_repl.store.verification import ALTERED, Finding, without_place

_BEGIN = re.compile(rb'\{"type": "(\w+)", "at": "([^"\\]*)"')


@dataclass(frozen=True)
class Salvaged:
    """The header, every event that could be read with its line, and what is wrong with the file."""

    header: Header
    events: tuple[tuple[int, Event], ...]
    troubles: tuple[Finding, ...]


def salvage(path: Path, types: Collection[str] | None = None) -> Salvaged:
    """As much of a session as can be read. Raises SessionError where not even its header can.

    With `types`, an event of another type whose sum holds is not read, which is most of the work: of it there is {"type", "at"} alone.
    """
    path = Path(path)
    lines, tail = form.read_lines(path, skip_long=True)
    header = form.parse_header(path, lines[0])
    events: list[tuple[int, Event]] = []
    troubles: list[Finding] = []
    tied = True  # whether the line before still says what this one's sum begins with: one damaged line is one trouble
    for number, line in enumerate(lines[1:], start=2):
        altered = tied and form.is_altered(line, lines[number - 2])
        begin = _BEGIN.match(line) if types is not None and not altered and tied and form.has_sum(line) else None
        if types is not None and begin is not None and begin[1].decode() not in types:
            events.append((number, {"type": begin[1].decode(), "at": begin[2].decode()}))
            continue
        try:
            events.append((number, form.parse_event(path, number, line)))
        except SessionError as error:
            troubles.append(Finding(number, without_place(str(error), path, number)))
            tied = form.has_sum(line)
        else:
            troubles += [Finding(number, ALTERED)] * altered
            tied = True
    if cut := form.dropped(lines, tail):
        troubles.append(Finding(len(lines) + 1, without_place(cut, path, len(lines) + 1)))
    for schema in range(header["lawf_session"], form.SCHEMA):
        header, moved = form.MIGRATIONS[schema](header, [event for _, event in events])
        numbers = [number for number, _ in events] if len(moved) == len(events) else [0] * len(moved)
        header, events = header | {"lawf_session": schema + 1}, list(zip(numbers, moved, strict=True))
    return Salvaged(header, tuple(events), tuple(troubles))
