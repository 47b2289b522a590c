"""The terminal's side of the loop: loading in the background, Ctrl-C as a flag, a quiet keyboard, the history file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from platformdirs import user_state_dir
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from lawf_repl.errors import LawfError, ModelError
from lawf_repl.records import Progress
from lawf_repl.ui.port import SessionPort


class Loader:
    """Runs `load` in a thread of its own, so that the prompt stands at once: it begins when that was drawn, or something waits for it.

    Importing torch keeps the interpreter to itself for tenths of a second at a time, and the prompt would wait for those.
    """

    def __init__(self, load: Callable[[Callable[[Progress], None]], SessionPort]) -> None:
        """`load` gets what it may report its progress to."""
        self.session: SessionPort | None = None
        self.error: LawfError | None = None
        self.progress: Progress | None = None
        self._load = load
        # A daemon: who leaves while a model is still loading does not wait for it.
        self._thread = threading.Thread(target=self._run, name="lawf-load", daemon=True)
        self._begun = False

    def begin(self) -> None:
        """Start loading, once; from the main thread."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def _run(self) -> None:
        try:
            self.session = self._load(self._report)
        except LawfError as error:
            self.error = error
        finally:
            if self.session is None and self.error is None:  # the thread's own traceback says why
                self.error = ModelError("the model could not be loaded; the traceback above says why")

    def _report(self, progress: Progress) -> None:
        self.progress = progress

    @property
    def done(self) -> bool:
        """Whether there is a session, or the reason why there is none."""
        return self.session is not None or self.error is not None

    def wait(self, seconds: float) -> None:
        """Wait at most so long for the end of loading."""
        self.begin()
        self._thread.join(seconds)


class Interruptible:
    """While it is entered, Ctrl-C sets a flag that is polled as `stop`, and what is typed is neither shown nor kept."""

    def __init__(self) -> None:
        self.stopped = False
        self._previous: Any = None
        self._main = threading.current_thread() is threading.main_thread()  # signals can only be set there
        self._keyboard = _QuietKeyboard()

    def __call__(self) -> bool:
        return self.stopped

    def __enter__(self) -> Interruptible:
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._flag)
        self._keyboard.hush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._keyboard.restore()
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _flag(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True


class _QuietKeyboard:
    """Turns the terminal's echo off and drops what was typed meanwhile: it would fall into the answer view as a fix."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    def hush(self) -> None:
        if sys.platform == "win32" or not sys.stdin.isatty():
            return
        import termios

        descriptor = sys.stdin.fileno()
        self._saved = termios.tcgetattr(descriptor)
        quiet = termios.tcgetattr(descriptor)
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)

    def restore(self) -> None:
        if self._saved is None or sys.platform == "win32":
            return
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._saved)
        self._saved = None


def open_history(kept: bool = True) -> History:
    """The private history file; in memory only where it is not to be kept or the file cannot be written."""
    if not kept:
        return InMemoryHistory()
    path = Path(user_state_dir("lawf")) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
