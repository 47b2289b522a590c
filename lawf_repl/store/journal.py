"""Everything that happened in a session, in order: in memory always, on the disk where there is a file or a folder for one.

What cannot be written interrupts nothing: `trouble` says why, and the events wait for the next one, or for another place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lawf_repl.errors import SessionError
from lawf_repl.store import lines as form
from lawf_repl.store.disk import adapter_path, clear_errors, remove_lock
from lawf_repl.store.file import SessionFile, TooLong
from lawf_repl.store.lines import Event

Opening = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]  # what the header says of the model, what the first note says


class Journal:
    """The events of one session. `opening` is asked once, when there is something to write it into."""

    def __init__(self, opening: Opening, file: SessionFile | None = None) -> None:
        self.file = file
        self.events: list[Event] = []
        self.trouble: SessionError | None = None  # why the last of them are not on the disk
        self._opening = opening
        self._opened = False
        self.folder: Path | None = None
        self._written = 0                         # events from here on are not in the file

    def keep_in(self, folder: Path) -> None:
        """From the first question on there is a file in `folder`, named by the time; the folder is made where it is missing."""
        self.folder = folder

    def go_on(self, file: SessionFile) -> None:
        """Takes over a file with what stands in it."""
        self.file, self.events = file, list(file.loaded.events)
        self._opened, self._written = True, len(self.events)

    def record(self, event_type: str, /, **values: Any) -> None:
        """One event more. Never fails for the disk's sake."""
        if event_type not in form.EVENT_TYPES or not values.keys().isdisjoint(form.OWN_KEYS):
            raise ValueError(f"no event: {event_type!r} with {sorted(values)}")
        self.events.append({"type": event_type, "at": form.now(), **values})
        with suppress(SessionError):
            self.flush()

    def flush(self) -> None:
        """Writes what is not on the disk yet. Raises SessionError, which stays as `trouble` until it has gone well."""
        try:
            if self.file is None and self.folder is not None and any(event["type"] == "prompt" for event in self.events):
                self.file = self._dated(self.folder)
            if self.file is not None:
                self._write(self.file)
            self.trouble = None
        except SessionError as error:
            self.trouble = error
            raise

    def save(self, path: Path) -> SessionFile:
        """Everything so far in a new file at `path`, which is open; the journal goes on where it was. Raises SessionError."""
        model, _ = self._open()
        file = SessionFile.create(path, model)
        try:
            for event in self.events:
                _write(file, event)
        except SessionError:
            file.close()
            path.unlink(missing_ok=True)  # half a copy would look like a whole one
            remove_lock(path)
            raise
        return file

    def move_to(self, file: SessionFile, more: Iterable[Event] = ()) -> None:
        """Goes on in a file that `save` made, which has `more` events by now; the one before is closed and stays where it is."""
        if self.file is not None:
            self.file.close()
        self.events += more
        self.file, self._written, self.trouble = file, len(self.events), None

    def close(self) -> None:
        """Closes the file, if there is one; nothing more is written then."""
        self.folder = None
        if self.file is not None:
            with suppress(SessionError):
                self.flush()
            self.file.close()

    def _open(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The opening, whose note becomes the first event."""
        model, note = self._opening()
        if not self._opened:
            self._opened = True
            self.events.insert(0, {"type": "note", "at": self.events[0]["at"] if self.events else form.now(), **note})
        return model, note

    def _write(self, file: SessionFile) -> None:
        if not self._opened:
            self._open()
        while self._written < len(self.events):
            _write(file, self.events[self._written])
            self._written += 1

    def _dated(self, folder: Path) -> SessionFile:
        """A new file in a folder. Raises SessionError."""
        with clear_errors(folder, "make the folder"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        model, _ = self._open()
        for path in dated_paths(folder):
            if not path.exists() and not adapter_path(path).exists():
                with suppress(_Taken):
                    return _create(path, model)
        raise AssertionError("there is no end of names")


class _Taken(Exception):
    """Another lawf was faster."""


def _create(path: Path, model: Mapping[str, Any]) -> SessionFile:
    try:
        return SessionFile.create(path, model)
    except SessionError:
        if path.exists():
            raise _Taken from None
        raise


def dated_paths(folder: Path) -> Iterator[Path]:
    """Names by the time, one after the other until one is free."""
    name = time.strftime("%Y-%m-%d-%H%M%S")
    yield folder / f"{name}{form.SUFFIX}"
    number = 2
    while True:
        yield folder / f"{name}-{number}{form.SUFFIX}"
        number += 1


def _write(file: SessionFile, event: Event) -> None:
    try:
        file.write(event)
    except TooLong:  # a very long answer: without what could have stood at each place it is a tenth of that
        slim = [token | {"alternatives": []} for token in event.get("tokens", ())]
        if not slim:
            raise
        file.write(event | {"tokens": slim})
