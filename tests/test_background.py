"""Dark or light: what terminals answer, and that nothing is waited for where they do not."""

from __future__ import annotations

import os
import pty
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawf_repl.ui import background
from lawf_repl.ui.background import detect, tone_of, tone_of_environment
from lawf_repl.ui.theme import COLOURS, LOOKS, theme_for


@pytest.mark.parametrize(("answer", "tone"), [
    (b"\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\\x1b[?62;22c", "dark"), (b"\x1b]11;rgb:ffff/fbfb/f0f0\x07", "light"), (b"\x1b]11;rgb:ff/ff/ff\x07", "light"),
    (b"\x1b]11;rgba:0000/0000/ffff/ffff\x07", "dark"), (b"\x1b]11;rgb:0000/ffff/0000\x07", "light"), (b"\x1b[?1;2c", "unknown"), (b"", "unknown"),
])
def test_answers(answer: bytes, tone: str) -> None:
    assert tone_of(answer) == tone


@given(st.binary(max_size=60))
def test_any_answer_is_read(answer: bytes) -> None:
    assert tone_of(answer) in ("dark", "light", "unknown")


def test_environment() -> None:
    assert [tone_of_environment({"COLORFGBG": value}) for value in ("15;0", "0;15", "0;default;15", "12;8", "x", "")] == [
        "dark", "light", "light", "dark", "unknown", "unknown"]
    assert detect({"TERM": "xterm"}) == "unknown", "no terminal, nothing asked"


def test_a_theme_that_is_asked_for_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawf_repl.ui.theme.detect", lambda environment: pytest.fail("asked"))
    assert theme_for(False, {}, "light").tone == "light" and theme_for(False, {"NO_COLOR": "1"}).tone == "middle"
    monkeypatch.setattr("lawf_repl.ui.theme.detect", lambda environment: "dark")
    assert theme_for(False, {}).tone == "dark" and theme_for(True, {}).tone == "middle"


def test_every_look_has_a_colour_in_every_theme() -> None:
    for tone, colours in COLOURS.items():
        theme = theme_for(False, {}, tone)
        assert {look.colour for look in LOOKS.values()} - {""} == set(colours)
        assert all(theme.rich(name).color is not None for name, look in LOOKS.items() if look.colour)


@pytest.mark.parametrize(("answers", "tone"), [(b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62c", "light"), (b"\x1b[?62c", "unknown"), (b"", "unknown")])
def test_a_real_terminal_is_asked_and_left_as_it_was(answers: bytes, tone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, side = pty.openpty()
    asked = []

    def answer() -> None:
        asked.append(os.read(terminal, 100))
        os.write(terminal, answers)

    import termios

    before = termios.tcgetattr(side)
    thread = threading.Thread(target=answer)
    thread.start()
    with os.fdopen(side, "r", closefd=False) as stdin, os.fdopen(side, "w", closefd=False) as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        monkeypatch.setattr(background, "SECONDS", 0.3 if not answers else 5)
        assert detect({"TERM": "xterm-256color"}) == tone
    thread.join(5)
    assert b"]11;?" in asked[0] and termios.tcgetattr(side) == before
    os.close(terminal)
    os.close(side)
