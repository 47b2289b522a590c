"""The line: several lines, vi and emacs, the editor, what completion offers, and a bar that fits."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len
from rich.console import Console

from lawf_repl.config import FIELDS
from lawf_repl.records import Progress
from lawf_repl.session import AT_START
from lawf_repl.ui import work
from lawf_repl.ui.commands import SETTINGS
from lawf_repl.ui.completion import CommandCompleter
from lawf_repl.ui.line import InputLine, Status, toolbar_text
from lawf_repl.ui.render import progress_text
from lawf_repl.ui.terminal import Loader
from lawf_repl.ui.theme import Theme
from tests.fake_session import FakeSession


@pytest.fixture
def pipe() -> Iterator[PipeInput]:
    with create_pipe_input() as created:
        yield created


def read(pipe: PipeInput, keys: str, *, vi: bool = False, history: tuple[str, ...] = (), count: int = 1) -> str:
    """What the line gives for the bytes of a terminal; the last of `count`."""
    kept = InMemoryHistory()
    for text in history:
        kept.append_string(text)
    with create_app_session(input=pipe, output=DummyOutput()):
        loader = Loader(lambda report: FakeSession())
        line = InputLine(loader, Theme(), Status("tiny"), kept, vi)
        pipe.send_text(keys)
        for _ in range(count - 1):
            line.read("")
        return line.read("")


@pytest.mark.parametrize(("keys", "text"), [
    ("one\r", "one"), ("one\x1b\rtwo\r", "one\ntwo"), ("one\ntwo\r", "one\ntwo"), ("\x1b[200~one\r\ntwo\nthree\x1b[201~\r", "one\ntwo\nthree"),
    ("a\x1b[200~x\r\x1b[201~b\r", "ax\nb"), ("你好\x1b\r世界\r", "你好\n世界"),
])
def test_enter_sends_and_newlines_are_made_or_pasted(pipe: PipeInput, keys: str, text: str) -> None:
    assert read(pipe, keys) == text


def test_vi_keys_are_there_from_the_start_or_after_f4(pipe: PipeInput) -> None:
    assert read(pipe, "one two\x1bbcwone\r", vi=True) == "one one"
    assert read(pipe, "one two\x1bOS\x1bbcwone\r") == "one one", "F4"
    assert read(pipe, "ab\x1bOS\x01x\r", vi=True) == "xab", "and back: Ctrl-A is the line's start"


def test_history_is_searched(pipe: PipeInput) -> None:
    assert read(pipe, "\x12capit\r\r", history=("What is the capital of France?", "Hello")) == "What is the capital of France?"


def test_an_editor_opens(pipe: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "edited\\nhere" > "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    timer = Timer(1.5, pipe.send_text, ["\r"])
    timer.start()  # prompt_toolkit sends what the editor left by itself; this is for the day when it does not
    assert read(pipe, "draft\x18\x05") == "edited\nhere"
    timer.cancel()
    timer.join()


def offers(line: str, session: FakeSession | None = None) -> dict[str, str]:
    completer = CommandCompleter(lambda: session)
    found: list[Completion] = list(completer.get_completions(Document(line), CompleteEvent()))
    return {item.text: item.display_meta_text for item in found}


def test_arguments_are_completed_with_what_they_mean(tmp_path: Path) -> None:
    assert "PROMPT" in offers("/para")["paraphrase"]
    assert set(offers("/set ")) == set(SETTINGS) and all(offers("/set ").values())
    assert set(offers("/set preset ")) == {"quick", "standard", "careful"} and offers("/set pres") == {"preset": offers("/set ")["preset"]}
    assert offers("/set seed ") == {} and offers("/help tra").keys() == {"train"} and offers("hello /t") == {} == offers("//t")
    session = FakeSession()
    list(session.follow_up("What is the capital of Australia?", lambda: False))
    list(session.replace(5, " Canberra", lambda: False))
    session.accept()
    assert offers("/goto ", session) == {"0": "The capital of Australia is Sydney.", "1": "The capital of Australia is Canberra."}
    assert offers("/cases drop ", session) == {"1": "What is the capital of Australia?"} and offers("/goto ") == {}
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "mine.txt").touch()
    assert offers(f"/load {tmp_path}/mi") == {"ne.jsonl": ""} and set(offers(f"/adapter save {tmp_path}/mi")) == {"ne.jsonl", "ne.txt"}
    saved = CommandCompleter(saved=lambda: [("nice name", "2026-11-26  你是谁？"), ("other", "")])
    for typed, names in (("", {"nice name", "other"}), ("nice n", {"nice name"}), ("x", set())):
        assert {item.text for item in saved.get_completions(Document(f"/load {typed}"), CompleteEvent())} == names
    assert offers(f"/adapter on {tmp_path}/mi") == {}


def test_settings_that_can_be_set_are_those_that_have_an_effect() -> None:
    assert set(SETTINGS) == set(FIELDS) - AT_START - {"system"}


@given(st.text(max_size=30))
def test_any_line_can_be_completed(text: str) -> None:
    for line in (text, f"/{text}", f"/set {text}", f"/adapter save {text}"):
        for item in offers(line.replace("\x00", ""), FakeSession()):
            assert isinstance(item, str)


def test_the_bar_fits_and_says_most_first() -> None:
    session, status = FakeSession(), Status("tiny", 2)
    session.adapter_on = session.has_adapter = True
    session.turns = 3
    full = toolbar_text(session, None, status, "", 200)
    assert full.startswith(" demo · cpu · adapter on · 2 anchors · turn 3") and full.endswith("F4 vi keys  Ctrl-D leaves")
    for width in (10, 40, 60, 80, 120):
        text = toolbar_text(session, None, status, "insert", width)
        assert width < 60 or "/ commands" in text, "what the keys do is more than the turn"
        assert (cell_len(text) < width and full.startswith(text[:30].rstrip())) or width == 10
    assert toolbar_text(None, None, Status("m\x1b[2J"), "", 80).startswith(" loading m\\x1b[2J …")
    assert "model.safetensors" in toolbar_text(None, Progress("model.safetensors", 3, 4, "B"), status, "", 80)
    assert " · vi insert · " in toolbar_text(session, None, status, "insert", 80)


def test_loading_says_how_far_it_is() -> None:
    assert progress_text(Progress("model.safetensors", 1_500_000_000, 3_000_000_000, "B")).endswith(" 50% of 3 GB")
    assert progress_text(Progress("Loading weights", 3, 4)).endswith(" 75%") and "\x1b" not in progress_text(Progress("\x1b[2J", 0, 0))

    def load(report: object) -> FakeSession:
        assert callable(report)
        report(Progress("weights", 1, 2))
        return FakeSession()

    loader = Loader(load)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    work.load(loader, "tiny", lambda: False, console, Theme())
    assert loader.done and loader.progress == Progress("weights", 1, 2)
