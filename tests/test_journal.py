"""A session whose disk is full or closed to it: nothing is lost while it runs, it is said, and it can be saved elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lawf_repl import store
from lawf_repl.engine.base import Engine
from lawf_repl.errors import SessionError
from lawf_repl.learn.adapter import Adapter
from lawf_repl.restore import restore
from lawf_repl.session import Session
from tests.scripted_session import SETTINGS, run, tiny


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


@pytest.fixture
def session(engine: Engine, tmp_path: Path) -> Iterator[Session]:
    """One that has an answer, which is saved in sessions/."""
    made = Session(engine, SETTINGS)
    made.keep_in(tmp_path / "sessions")
    run(made.ask("What is it?"))
    yield made
    made.close()


@pytest.fixture
def disk(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes the disk of the session's first folder full, or lets it be written to again."""
    assert session.place is not None
    first, real, full = os.stat(session.place.parent).st_ino, os.write, [False]

    def write(descriptor: int, data: Any) -> int:
        if full[0] and os.stat(Path(f"/proc/self/fd/{descriptor}").resolve().parent).st_ino == first:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    save = Adapter.save

    def save_adapter(adapter: Adapter, folder: Path) -> None:
        if full[0] and os.stat(folder.parent).st_ino == first:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(adapter, folder)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(Adapter, "save", save_adapter)
    return lambda now: full.__setitem__(0, now)


def kinds(path: Path) -> list[str]:
    return [event["type"] for event in store.load(path).events]


def fixed(session: Session) -> None:
    """A correction, accepted and trained."""
    run(session.replace(1, "z"))
    session.accept()
    run(session.train())


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def test_what_did_not_fit_waits_and_is_written_with_the_next_event(session: Session, disk: Callable[[bool], None]) -> None:
    place = session.place
    assert place is not None and session.unsaved == ""
    before = place.read_bytes()
    disk(True)
    fixed(session)
    assert "No space left" in session.unsaved and "/save NAME writes it elsewhere" in session.unsaved and "\n" not in session.unsaved
    assert place.read_bytes() == before and session.has_adapter and session.node is not None and session.node.training is not None
    disk(False)
    session.add_neighbour("And that?")
    assert session.journal.trouble is None and kinds(place)[3:] == ["correction", "completion", "accept", "training", "note"]
    session.close()  # the adapter has room by now, too
    assert session.trouble is None and kinds(place)[-1] == "adapter" and store.verify(place) == []


def test_it_is_saved_elsewhere_whole_and_goes_on_there(session: Session, disk: Callable[[bool], None], engine: Engine, tmp_path: Path) -> None:
    place = session.place
    assert place is not None
    disk(True)
    fixed(session)
    with pytest.raises(SessionError, match="No space left"):
        session.name("inside")
    assert sorted(one.name for one in place.parent.iterdir()) == sorted([place.name, f"{place.stem}.lock"]), "nothing is left of the attempt"
    assert session.unsaved and session.place == place
    session.name(str(tmp_path / "elsewhere"))
    assert session.unsaved == "" and session.place == tmp_path / "elsewhere.jsonl"
    run(session.follow_up("And that?"))
    nodes, version = [node.completion.ids for node in session.nodes], session.training
    session.close()
    assert store.verify(tmp_path / "elsewhere.jsonl") == [] and store.verify(place) == []
    again = restore(tmp_path / "elsewhere.jsonl", engine, SETTINGS)
    assert [node.completion.ids for node in again.nodes] == nodes and again.training == version and again.has_adapter and again.adapter_on
    again.close()


def test_a_folder_that_cannot_be_made_costs_no_answer(engine: Engine, tmp_path: Path) -> None:
    """Also where the permissions are at fault, which root does not meet: a file stands in the way."""
    (tmp_path / "file").touch()
    session = Session(engine, SETTINGS)
    session.keep_in(tmp_path / "file" / "sessions")
    run(session.ask("What is it?"))
    assert session.node is not None and session.place is None and "cannot make the folder" in session.unsaved
    session.name(str(tmp_path / "elsewhere"))
    assert session.unsaved == "" and kinds(tmp_path / "elsewhere.jsonl") == ["note", "prompt", "completion"]
    session.close()


def test_a_file_that_was_taken_away_is_written_anew(session: Session, tmp_path: Path) -> None:
    assert session.place is not None
    session.place.unlink()
    run(session.follow_up("And that?"))
    assert "was removed while in use" in session.unsaved
    session.name("again")
    assert session.unsaved == "" and kinds(tmp_path / "sessions" / "again.jsonl").count("completion") == 2


def test_a_name_that_is_taken_changes_nothing(session: Session, tmp_path: Path) -> None:
    place = session.place
    other = tmp_path / "sessions" / "other.jsonl"
    with store.SessionFile.create(other, {}):
        pass
    content = other.read_bytes()
    with pytest.raises(SessionError, match="exists already"):
        session.name("other")
    assert session.place == place and other.read_bytes() == content and session.unsaved == ""
    with store.open_to_append(other), pytest.raises(SessionError, match="in use by another lawf"):
        session.name("other")
    assert session.place == place and other.read_bytes() == content
