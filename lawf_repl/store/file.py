"""An open session file: created, gone on with, appended to event by event, renamed; and one that is only read."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lawf_repl import __version__
from lawf_repl.errors import SessionError
from lawf_repl.store import lines as form
from lawf_repl.store.adapters import move_adapters
from lawf_repl.store.disk import BINARY, adapter_path, clear_errors, lock_path, remove_lock, replace_file, sync_directory, temporaries
from lawf_repl.store.lines import Event, Header, LoadedSession

if TYPE_CHECKING:
    from filelock import BaseFileLock


class SessionFile:
    """An open session that events are appended to; safe to use from several threads.

    An event that could not be written leaves the file as it was before, and the file stays usable: append again, or
    save elsewhere.
    """

    def __init__(self, path: Path, loaded: LoadedSession, descriptor: int, lock: BaseFileLock, last: bytes) -> None:
        """Takes over an open descriptor, a held lock and the file's last line; use `create` or `open_to_append`."""
        self.path = path
        self.loaded = loaded  # what stood in the file when it was opened
        self._descriptor: int | None = descriptor
        self._lock = lock
        self._last = last                         # the line that the next one's sum begins with
        self._end = os.fstat(descriptor).st_size  # bytes up to here are whole lines
        self._torn = False                        # bytes beyond `_end` may exist
        self._turn = threading.RLock()

    @classmethod
    def create(cls, path: Path, model: Mapping[str, Any]) -> SessionFile:
        """A new session. `model` holds what is known of MODEL_KEYS. Raises SessionError, also where `path` exists."""
        path = Path(path)
        header: Header = {"lawf_session": form.SCHEMA, "id": uuid.uuid4().hex, "created": form.now(), "lawf_version": __version__,
                          "model": {key: model.get(key) for key in form.MODEL_KEYS} | dict(model)}
        line = form.to_line(header)
        with _releasing(_acquire(path)) as lock, clear_errors(path, "create"):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
            except FileExistsError:
                raise SessionError(f"session {path} exists already; choose another name or remove it first") from None
            session = cls(path, LoadedSession(header, ()), descriptor, lock, line)
            try:
                session._write(line)
                sync_directory(path.parent)
            except BaseException:  # an interrupt too
                os.close(descriptor)
                path.unlink()  # ours, and without a whole header it is no session
                remove_lock(path)
                raise
        return session

    def append(self, event_type: str, /, **values: Any) -> Event:
        """Writes one event to the disk and gives it back; texts may hold any character, numbers need not be finite.

        Raises SessionError if it could not be written, ValueError or TypeError for an event that is none.
        """
        if event_type not in form.EVENT_TYPES or not values.keys().isdisjoint(form.OWN_KEYS):
            raise ValueError(f"expected an event type of {sorted(form.EVENT_TYPES)} without own type and at, found {event_type!r}")
        event: Event = {"type": event_type, "at": form.now(), **values}
        self.write(event)
        return event

    def write(self, event: Event) -> None:
        """Writes an event that has its type and time already. Raises SessionError."""
        with self._turn, clear_errors(self.path, "write to"):
            line = form.to_line(event, self._last)
            if len(line) > form.MAX_LINE_BYTES:
                raise TooLong(f"session {self.path}: a {event['type']} event of {len(line)} bytes is above 50 MB and was not saved")
            self._write(line)

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
        self._end, self._last = self._end + len(line), line
        self._torn = False

    def _mend(self) -> None:
        """Cuts off what an event that failed, or was interrupted, has left behind."""
        if self._torn and self._descriptor is not None:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False

    def rename(self, path: Path) -> None:
        """Names the session anew, its adapters and its lock with it. Raises SessionError, and then it has its old name still.

        A note about it comes first, so that adapters are found again if the process dies between two of the renamings.
        """
        path, before = Path(path), self.path
        if os.path.realpath(path) == os.path.realpath(before):
            return
        if before.is_symlink():
            raise SessionError(f"session {before} is a link: name the file that it points to")
        with self._turn, _releasing(_acquire(path)) as lock:
            for taken in (path, adapter_path(path)):
                if taken.exists() or taken.is_symlink():
                    raise SessionError(f"{taken} exists already; choose another name or remove it first")
            end, last, held = self._end, self._last, self._lock
            try:
                self.append("note", text=f"named {path.name.removesuffix(form.SUFFIX)}", what="named", was=before.name)
                with clear_errors(path, "rename the session to"):
                    os.rename(before, path)
            except SessionError:
                self._end, self._last, self._torn = end, last, True  # it was not named after all
                with suppress(OSError):
                    self._mend()
                raise
            self.path, self._lock = path, lock
        with suppress(OSError):  # the note says where they are if this fails
            move_adapters(before, path)
        for folder in {path.parent, before.parent}:
            sync_directory(folder)
        remove_lock(Path(os.path.realpath(before)))  # no session has this name any more
        held.release()

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

    A cut last line or an older schema is put right first, by replacing the whole file; what a killed process has left
    half-written beside it goes.
    """
    path = Path(path)
    real = Path(os.path.realpath(path))  # a link must stay one
    form.parse_header(path, form.read_lines(real)[0][0])  # before the lock: what is no session gets no lock file beside it
    with _releasing(_acquire(path)) as lock, clear_errors(path, "open"):
        lines, tail = form.read_lines(real)
        loaded = form.parse(path, lines, tail)
        old = form.parse_header(path, lines[0])["lawf_session"] != form.SCHEMA
        lines = form.to_lines(loaded.header, loaded.events) if old else lines
        if old or tail:
            replace_file(real, b"".join(lines))
        descriptor = os.open(real, os.O_WRONLY | os.O_APPEND | BINARY)
        for left in (*temporaries(real), *temporaries(adapter_path(real))):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        return SessionFile(path, loaded, descriptor, lock, lines[-1])


def load(path: Path) -> LoadedSession:
    """A session file, migrated to the newest schema in memory; needs no lock and no model. Raises SessionError."""
    path = Path(path)
    return form.parse(path, *form.read_lines(path))


class TooLong(SessionError):
    """An event is longer than a line may be."""


def _acquire(path: Path) -> BaseFileLock:
    from filelock import FileLock, Timeout  # late: readers need no lock

    if not path.parent.is_dir():  # a lock would make the folder, and a slip of the pen with it
        raise SessionError(f"folder {path.parent} of session {path.name} does not exist; create it or choose another")
    lock = FileLock(str(lock_path(Path(os.path.realpath(path)))), timeout=0, mode=0o600, thread_local=False)
    with clear_errors(path, "lock"):
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
