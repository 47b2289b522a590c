"""What `lawf` does with session files while it runs: each is saved, another can be opened, the one that stands can be replayed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import LawfError, SessionError
from lawf_repl.session import Session
from lawf_repl.ui.theme import Theme
from lawf_repl.verbs.repl import Shelf

EXAMPLES = Path(__file__).parent.parent / "sessions"
PLAIN = Theme(plain=True)


@pytest.fixture
def shelf(demo_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Sessions in a folder that has two examples, one of them open; probes are left out."""
    monkeypatch.setattr("lawf_repl.engine.base.load_engine", lambda settings, report=None: demo_engine)
    monkeypatch.setattr("lawf_repl.measure.prompts.load_probes", lambda engine, settings: None)
    for name in ("fact", "term"):
        shutil.copy(EXAMPLES / f"{name}.jsonl", tmp_path)
        shutil.copytree(EXAMPLES / f"{name}.adapter", tmp_path / f"{name}.adapter")
    made = Shelf(tmp_path, Settings(max_tokens=24), frozenset())
    made.begin(None, lambda progress: None)
    yield made
    made.close()


def open_session(shelf: Shelf) -> Session:
    assert shelf.session is not None
    return shelf.session


def ask(session: Session, prompt: str) -> str:
    for _ in session.follow_up(prompt):
        pass
    assert session.node is not None
    return session.node.completion.text


def text_of(shown: RenderableType) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def load(shelf: Shelf, name: str) -> str:
    _, shown = shelf.load(open_session(shelf), name, lambda: False, PLAIN)
    return " ".join(text_of(shown).split())


def replayed(shelf: Shelf, argument: str = "") -> str:
    session = open_session(shelf)
    shown = shelf.replay(session, argument, lambda: False, PLAIN)[1]
    assert open_session(shelf) is session
    return text_of(shown)


def test_a_session_is_saved_from_its_first_question_on(shelf: Shelf, tmp_path: Path) -> None:
    session = open_session(shelf)
    before = set(tmp_path.glob("*.jsonl"))
    assert (session.place, len(before)) == (None, 2)
    ask(session, "What is the capital of Japan?")
    made, = set(tmp_path.glob("*.jsonl")) - before
    assert session.place == made and store.load(made).events[-1]["type"] == "completion"


def test_another_session_takes_its_place_with_its_adapter_and_back(shelf: Shelf, tmp_path: Path) -> None:
    first = open_session(shelf)
    ask(first, "What is the capital of Japan?")
    place = first.place
    assert "opened" in load(shelf, "fact") and "1 accepted" in load(shelf, str(tmp_path / "term"))
    assert "3 answers" in load(shelf, "fact")
    session = open_session(shelf)
    assert session.place == tmp_path / "fact.jsonl" and session.has_adapter and session.adapter_on
    session.new_conversation()
    assert ask(session, "What is the capital of Australia?") == "The capital of Australia is Canberra."
    assert place is not None
    load(shelf, place.stem)
    session = open_session(shelf)
    assert not session.has_adapter and session.place == place
    session.new_conversation()
    assert ask(session, "What is the capital of Australia?") == "The capital of Australia is Sydney."


@pytest.mark.parametrize(("name", "said"), [
    ("nothing", "no session nothing in"), ("../fact", "whole path"), ("", "expected /load NAME"), ("broken", "is not a lawf session"),
    ("fact", "is the session that is open"), ("held", "in use by another lawf"), ("newer", "update lawf"), ("other", "the tokenizer differs")])
def test_what_cannot_be_opened_leaves_the_one_that_stands(name: str, said: str, shelf: Shelf, tmp_path: Path) -> None:
    load(shelf, "fact")
    (tmp_path / "broken.jsonl").write_text("{}\n")
    header, _, rest = (EXAMPLES / "term.jsonl").read_text().partition("\n")
    (tmp_path / "newer.jsonl").write_text(header.replace('"lawf_session": 1', '"lawf_session": 9') + "\n" + rest)
    was = store.load(EXAMPLES / "term.jsonl").header["model"]["tokenizer_sha256"]
    (tmp_path / "other.jsonl").write_text(header.replace(was, "0" * 64) + "\n" + rest)
    shutil.copy(EXAMPLES / "term.jsonl", tmp_path / "held.jsonl")
    session = open_session(shelf)
    with store.open_to_append(tmp_path / "held.jsonl"), pytest.raises(LawfError, match=said):
        load(shelf, name)
    assert open_session(shelf) is session and session.has_adapter and session.adapter_on
    session.new_conversation()
    assert ask(session, "What is the capital of Australia?") == "The capital of Australia is Canberra."
    assert store.verify(tmp_path / "fact.jsonl") == []


def test_what_is_not_saved_is_not_left(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(shelf)
    ask(session, "What is the capital of Japan?")
    session.journal.trouble = SessionError("the disk is full")
    with pytest.raises(SessionError, match="/save NAME writes it elsewhere first"):
        load(shelf, "fact")
    assert open_session(shelf) is session
    session.journal.trouble = None


def test_replay_checks_what_stands_and_leaves_it(shelf: Shelf) -> None:
    with pytest.raises(LawfError, match="nothing to replay yet"):
        replayed(shelf)
    load(shelf, "fact")
    session = open_session(shelf)
    ids = session.node.completion.ids if session.node else ()
    text = replayed(shelf)
    assert text.startswith("same") and "after training same" in text
    assert session.has_adapter and session.adapter_on and session.node is not None and session.node.completion.ids == ids
    with pytest.raises(LawfError, match="expected /replay"):
        replayed(shelf, "--again")
    session.new_conversation()
    assert ask(session, "What is the capital of Australia?") == "The capital of Australia is Canberra."


def test_resume_goes_on_with_the_last_one(shelf: Shelf, tmp_path: Path) -> None:
    open_session(shelf).close()
    session = shelf.resume(tmp_path / "fact.jsonl", lambda progress: None)
    assert session.has_adapter and len(session.nodes) == 3
    before = len(store.load(tmp_path / "fact.jsonl").events)
    ask(session, "What is the capital of Japan?")
    assert len(store.load(tmp_path / "fact.jsonl").events) == before + 2 and store.verify(tmp_path / "fact.jsonl") == []
