"""A pseudo-terminal with a program in it, for what can only be timed from outside."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROWS, COLUMNS = 24, 80
# What programs ask and every terminal answers at once: a dark background (OSC 11), its kind (DA1), where the cursor is (CPR).
ANSWERS = {b"\x1b]11;?": b"\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\", b"\x1b[c": b"\x1b[?62;22c", b"\x1b[6n": b"\x1b[1;1R"}


class Terminal:
    """A child whose standard streams are a terminal of 80 by 24; it is killed at the end of the block."""

    available = sys.platform != "win32" and importlib.util.find_spec("termios") is not None

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.sent = b""  # all that the child wrote
        self._answered = dict.fromkeys(ANSWERS, 0)
        self._side, child = os.openpty()
        try:
            self._size()
            self._child = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=dict(environ), start_new_session=True)
        finally:
            os.close(child)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._child.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        self._child.wait()
        os.close(self._side)

    def read(self, seconds: float) -> bool:
        """Take what comes within so long, and answer what is asked; False where the child has gone."""
        ready, _, _ = select.select([self._side], [], [], seconds)
        if not ready:
            return self._child.poll() is None
        try:
            more = os.read(self._side, 65536)
        except OSError:  # Linux: nobody holds the other side any more
            more = b""
        self.sent += more
        for question, answer in ANSWERS.items():
            while self._answered[question] < self.sent.count(question):
                self._answered[question] += 1
                self.type(answer)
        return bool(more)

    def type(self, keys: bytes) -> None:
        """Send bytes as the keyboard would."""
        os.write(self._side, keys)

    def _size(self) -> None:
        if sys.platform != "win32":
            import termios

            termios.tcsetwinsize(self._side, (ROWS, COLUMNS))
