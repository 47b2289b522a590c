"""The line: several lines, vi and emacs, the editor, what completion offers, and a bar that fits."""

from __future__ import annotations

import io
import os
import shutil
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

from lawf_repl.config import FIELDS, Settings
from lawf_repl.records import Progress
from lawf_repl.session import AT_START
from lawf_repl.ui import work
from lawf_repl.ui.commands import SETTINGS
from lawf_repl.ui.completion import CommandCompleter
from lawf_repl.ui.line import InputLine, Status, toolbar_text
from lawf_repl.ui.render import progress_text
from lawf_repl.ui.terminal import Loader
from lawf_repl.ui.theme import Theme
from lawf_repl.verbs.repl import Shelf
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


def test_escape_is_not_waited_for(pipe: PipeInput) -> None:
    with create_app_session(input=pipe, output=DummyOutput()):
        line = InputLine(Loader(lambda report: FakeSession()), Theme(), Status("tiny"), InMemoryHistory(), True)
    assert line._prompt.app.ttimeoutlen <= 0.1, "half a second, prompt_toolkit's own, is felt in vi's keys"


@pytest.mark.parametrize(("first", "then", "text"), [
    ("\x1b", "/train\r", "/train"), ("one\x1b", "two\r", "onetwo"), ("\x1b\x1b", "/t\r", "/t"), ("one\x1b\rtw", "o\r", "one\ntwo"),
    ("ab cd\x1bb", "X\r", "ab Xcd"), ("\x12on\x1b", "/\r", "/one"),
])
def test_what_is_typed_after_escape_arrives_and_alt_keys_work(first: str, then: str, text: str, pipe: PipeInput) -> None:
    after = Timer(0.3, pipe.send_text, [then])  # Esc alone is known as such after 0.05 s, and counted as a part of an Alt key for a second
    after.start()
    assert read(pipe, first, history=("one",)) == text
    after.join()


def test_loading_begins_when_the_prompt_was_drawn(pipe: PipeInput) -> None:
    drawn: list[str] = []

    class Output(DummyOutput):
        def write(self, data: str) -> None:
            drawn.append(data)

    with create_app_session(input=pipe, output=Output()):
        at: list[str] = []

        def load(report: object) -> FakeSession:
            at.append("".join(drawn))
            return FakeSession()

        loader = Loader(load)
        line = InputLine(loader, Theme(), Status("tiny"), InMemoryHistory())
        assert at == []
        pipe.send_text("one\r")
        assert line.read("") == "one"
        loader.wait(60)
    assert loader.done and len(at) == 1 and "›" in at[0]


@pytest.mark.parametrize(("notes", "count"), [(["a note"], 1), ([], 0)])
def test_what_there_is_to_say_of_a_session_is_said_while_the_prompt_stands(notes: list[str], count: int, pipe: PipeInput) -> None:
    session, told = FakeSession(), list[object]()
    session.notes = notes
    with create_app_session(input=pipe, output=DummyOutput()):
        line = InputLine(Loader(lambda report: session), Theme(), Status("tiny"), InMemoryHistory(), loaded=told.append)
        sent = Timer(0.5, pipe.send_text, ["one\r"])
        sent.start()
        assert line.read("") == "one" and told == [session] * count
        sent.join()


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


def test_saved_sessions_are_offered_newest_first_and_broken_ones_left_out(tmp_path: Path) -> None:
    examples = Path(__file__).parent.parent / "sessions"
    for age, (name, source) in enumerate((("older", "fact"), ("newer", "identity"))):
        shutil.copy(examples / f"{source}.jsonl", tmp_path / f"{name}.jsonl")
        os.utime(tmp_path / f"{name}.jsonl", (1000 + age, 1000 + age))
    (tmp_path / "broken.jsonl").write_text("{")
    shelf = Shelf(tmp_path, Settings(), frozenset())
    assert [name for name, _ in shelf.names()] == ["newer", "older"] and "Australia" in shelf.names()[1][1]
    (tmp_path / "newer.jsonl").unlink()
    assert [name for name, _ in shelf.names()] == ["older"] and not Shelf(tmp_path / "none", Settings(), frozenset()).names()


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
