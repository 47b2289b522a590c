"""Records a correction, training and export of the demo model in a terminal: `python -m tests.recording` writes recording.cast and the README's tour.

The cast is asciinema's version 2 (https://docs.asciinema.org/manual/asciicast/v2/), plain text; its markers are the moments that the README
shows. tests/test_recording.py holds that the README shows what the cast does.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

COLUMNS, LINES = 80, 24
ROOT = Path(__file__).parent.parent
CAST = ROOT / "tests" / "recording.cast"
README = ROOT / "README.md"
BEGIN, END = "<!-- recording: made by python -m tests.recording -->", "<!-- end of the recording -->"
Event = tuple[float, str, str]

# What is waited for on the screen, the keys pressed then (one after the other), and what the README says of the screen before them.
STEPS: tuple[tuple[str, Sequence[str], str], ...] = (
    ("› What is the capital", ["\r"], ""),
    (r"? keys", ["\r"], "The answer, opened on the token that the model was least sure of:"),
    ("all others", ["c", *"Canberra"], "`Enter`: what else could have stood there:"),
    ("berra 9", ["\r"], "`c` and the right word, shown as the tokens that it becomes:"),
    ("Canberra.⟨im_end⟩", ["a"], "`Enter`: the model goes on from there, what was read before is not read again:"),
    ("accepted:", ["t"], ""),
    ("answer right   round", [], "`a` accepts, `t` trains:"),
    ("Fixed:", [*"/export peft australia", "\r"], "And the prompt again, before and after, with what else changed:"),
    ("lawf.json", [*"/quit", "\r"], "`/export` writes it for other software, loads it there before it is called good, and says how to serve it:"),
    ("bye", [], ""),
)
MOVING = ("answer right   round", "lawf.json")  # the screen goes on at once


def record() -> list[Event]:
    """Drive the real program; the events of the cast, markers included."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"TERM": "xterm-256color", "HOME": home, "XDG_STATE_HOME": home, "XDG_CONFIG_HOME": home, "COLORFGBG": "15;0",
                                    "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT)}
        child = pexpect.spawn(sys.executable, ["-m", "lawf_repl", "demo", "capital-australia"], dimensions=(LINES, COLUMNS), env=environment,
                              cwd=home)
        terminal, started = pyte.Screen(COLUMNS, LINES), time.monotonic()
        stream, decode = pyte.Stream(terminal), codecs.getincrementaldecoder("utf-8")("replace").decode

        def watch(seconds: float, pattern: str = "") -> bool:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    text = decode(child.read_nonblocking(65536, timeout=0.02))
                except pexpect.TIMEOUT:
                    text = ""
                except pexpect.EOF:
                    return pattern in "\n".join(terminal.display)
                if text:
                    stream.feed(text)
                    events.append((round(time.monotonic() - started, 3), "o", text))
                if pattern and pattern in "\n".join(terminal.display):
                    return True
            return not pattern

        for pattern, keys, caption in STEPS:
            if not watch(300, pattern):
                raise SystemExit(f"{pattern!r} was not seen on the screen:\n" + "\n".join(terminal.display))
            watch(0.0 if pattern in MOVING else 1.0)
            if caption:
                events.append((round(time.monotonic() - started, 3), "m", caption))
            watch(1.0 if keys and pattern in MOVING else 0.0)
            for key in keys:
                child.send(key.encode())
                watch(0.12)
        child.close()
        return shortened(events, {os.path.realpath(home): "~", str(ROOT): "~/lawf"})


def shortened(events: Sequence[Event], names: Mapping[str, str]) -> list[Event]:
    """Paths of the machine that it was recorded on under shorter names: they are all that is not as it was."""
    for path, name in names.items():
        events = [(at, kind, data.replace(path, name)) for at, kind, data in events]
        if path in "".join(data for _, kind, data in events if kind == "o"):
            raise SystemExit(f"{path} came in two pieces: record again")
    return list(events)


def scenes(events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    """(caption, what the screen shows) at each marker."""
    terminal = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(terminal)
    for _, kind, data in events:
        if kind == "o":
            stream.feed(data)
            continue
        rows = [row.rstrip() for row in terminal.display]
        while rows and not rows[-1]:
            rows.pop()
        yield data, "\n".join(rows).strip("\n")


def tour(events: Sequence[Event]) -> str:
    """The README's part."""
    parts = [f"{caption}\n\n```text\n{screen}\n```" for caption, screen in scenes(events)]
    return "\n\n".join([BEGIN, *parts, END])


def read_cast() -> list[Event]:
    """The committed recording."""
    _, *lines = CAST.read_text(encoding="utf-8").splitlines()
    return [(float(at), str(kind), str(data)) for at, kind, data in map(json.loads, lines)]


def main() -> None:
    """Record, and write both files."""
    events = record()
    header = {"version": 2, "width": COLUMNS, "height": LINES, "title": "lawf demo capital-australia", "env": {"TERM": "xterm-256color"}}
    CAST.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (header, *events)), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(before + tour(events) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
