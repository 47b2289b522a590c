"""Whether the terminal's background is dark or light, where it tells."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Mapping
from typing import Literal

Tone = Literal["dark", "light", "unknown"]
QUESTION = b"\x1b]11;?\x1b\\\x1b[c"  # the background colour (xterm's OSC 11), then what every terminal answers (DA1): it need not be waited for
SECONDS = 0.2                         # for a terminal that answers neither


def tone_of(answer: bytes) -> Tone:
    """What a terminal's answer to OSC 11, such as rgb:1e1e/1e1e/1e1e, says of its background."""
    found = re.search(rb"\x1b\]11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})", answer)
    if not found:
        return "unknown"
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    return "light" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "dark"  # luminance as ITU-R BT.709 weighs it


def tone_of_environment(environment: Mapping[str, str]) -> Tone:
    """What COLORFGBG says, which rxvt, Konsole and others set: its last number is the background's."""
    last = environment.get("COLORFGBG", "").rpartition(";")[2]
    if not last.isdecimal():
        return "unknown"
    return "light" if int(last) in (7, *range(9, 16)) else "dark"


def detect(environment: Mapping[str, str]) -> Tone:
    """The tone of the terminal that standard input and output are, from the environment or by asking it."""
    told = tone_of_environment(environment)
    if told != "unknown" or environment.get("TERM", "") in ("dumb", "unknown", "linux", "") or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return told
    return _ask()


def _ask() -> Tone:
    if sys.platform == "win32":
        return "unknown"
    import termios

    descriptor = sys.stdin.fileno()
    try:
        saved = termios.tcgetattr(descriptor)
        raw = termios.tcgetattr(descriptor)
        raw[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(descriptor, termios.TCSANOW, raw)
    except termios.error:
        return "unknown"
    try:
        os.write(sys.stdout.fileno(), QUESTION)
        return tone_of(_answer(descriptor))
    except OSError:
        return "unknown"
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, saved)


def _answer(descriptor: int) -> bytes:
    """What comes until the answer to DA1 is whole."""
    answer, end = b"", time.monotonic() + SECONDS
    while not re.search(rb"\x1b\[\?[0-9;]*c", answer):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            break
        answer += os.read(descriptor, 256)
    return answer
