"""A session that was rebuilt from its file is the one that was left, and goes on in that file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import SessionError, TrainingError
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.restore import restore
from lawf_repl.session import Session, open_session
from lawf_repl.store.disk import directory_sha256

EXAMPLES = Path(__file__).parent.parent / "sessions"
QUICK = Settings(variations=0, rounds=1, max_steps=40)


def drain(tokens: object) -> None:
    for _ in tokens:  # type: ignore[attr-defined]
        pass


@pytest.fixture(scope="module")
def left(demo_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A session with two prompts, an undo, a training, a conversation and a held answer, and what it was when it was left."""
    path = tmp_path_factory.mktemp("left") / "one.jsonl"
    session = open_session(demo_engine, QUICK, ProbeSet(), path)
    drain(session.ask("What is the capital of Japan?"))
    drain(session.ask("What is the capital of Australia?"))
    drain(session.want("The capital of Australia is Canberra."))
    session.undo()
    drain(session.want("The capital of Australia is Canberra."))
    session.accept()
    session.add_neighbour("What is the capital of Canada?")
    drain(session.train())
    session.switch_adapter(False)
    session.switch_adapter(True)
    facts = facts_of(session)
    session.close()
    session.reset_adapter()
    return path, facts


def facts_of(session: Session) -> dict[str, object]:
    """What a user could see of a session; times apart."""
    return {
        "nodes": [(node.id, node.parent, node.completion.ids if node.completion else None, node.adapter_on) for node in session.nodes],
        "node": session.node.id if session.node else None, "cases": session.cases, "settings": session.settings,
        "neighbours": session.neighbours, "paraphrases": session.paraphrases, "adapter": (session.has_adapter, session.adapter_on),
        "training": session.training,
    }


def test_everything_is_as_it_was_left(left: tuple[Path, dict[str, object]], demo_engine: Engine, tmp_path: Path) -> None:
    path = copied(left[0], tmp_path)
    session = restore(path, demo_engine, Settings())
    try:
        now = facts_of(session)
        assert {key: value for key, value in now.items() if value != left[1][key]} == {}
        reruns = session.rerun()
        assert reruns[0].fixed and reruns[0].before.ids != reruns[0].after.ids
        drain(session.ask("What is the capital of Italy?"))
    finally:
        session.close()
        session.reset_adapter()
    assert store.verify(path) == []
    events = [json.loads(line)["type"] for line in path.read_text().splitlines()[1:]]
    assert events[-1] == "completion" and path.read_bytes().startswith(left[0].read_bytes()), "it goes on behind what was there"


def test_undo_reaches_behind_where_it_was_left(left: tuple[Path, dict[str, object]], demo_engine: Engine, tmp_path: Path) -> None:
    session = restore(copied(left[0], tmp_path), demo_engine, Settings())
    try:
        steps = 0
        while session.node is not None and session.node.parent is not None:
            session.undo()
            steps += 1
        assert steps >= 2 and session.node is not None and not session.adapter_on
    finally:
        session.close()
        session.reset_adapter()


def test_a_missing_adapter_leaves_the_base_and_says_so(left: tuple[Path, dict[str, object]], demo_engine: Engine, tmp_path: Path) -> None:
    path = copied(left[0], tmp_path)
    folder = path.with_suffix(".adapter")
    folder.rename(tmp_path / "elsewhere")
    session = restore(path, demo_engine, Settings())
    said = f"put its folder {folder} back and open the session again, or /train makes it again"
    assert not session.has_adapter and [text for text in session.notes if "adapter" in text] == [
        f"the adapter is not there as it was saved: {said}; the base stands"]
    with pytest.raises(TrainingError, match="is not there as it was saved"):
        session.goto(next(node.id for node in session.nodes if node.training is not None))
    session.close()
    (tmp_path / "elsewhere").rename(folder)
    session = restore(path, demo_engine, Settings())
    assert session.has_adapter and session.adapter_on and not any("adapter" in text for text in session.notes)
    session.close()
    session.reset_adapter()


def test_an_adapter_that_was_never_saved_is_said_to_be_that(left: tuple[Path, dict[str, object]], demo_engine: Engine, tmp_path: Path) -> None:
    path = copied(left[0], tmp_path)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"type": "adapter"' not in line))
    session = restore(path, demo_engine, Settings())
    assert "the adapter was not saved before lawf ended: /train makes it again; the base stands" in session.notes
    session.close()


def test_another_tokenizer_is_refused_and_the_file_stays(left: tuple[Path, dict[str, object]], tiny_engine: Engine, tmp_path: Path) -> None:
    path = copied(left[0], tmp_path)
    before = path.read_bytes()
    with pytest.raises(SessionError, match="the tokenizer differs"):
        restore(path, tiny_engine, Settings())
    assert path.read_bytes() == before
    store.open_to_append(path).close()  # and its lock is free


def test_events_out_of_their_order_are_refused_by_their_type(tmp_path: Path, demo_engine: Engine) -> None:
    """Any line left out, or given twice, either gives a session or one line that says what is wrong."""
    lines = [json.loads(line) for line in (EXAMPLES / "fact.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in event.items() if key != "sum"} for event in lines]
    refused = 0
    for number in range(1, len(lines)):
        for changed in (lines[:number] + lines[number + 1:], [*lines[:number], lines[number], *lines[number:]]):
            folder = tmp_path / f"{number}-{len(changed)}"
            folder.mkdir()
            path = folder / "fact.jsonl"
            path.write_text("".join(json.dumps(event) + "\n" for event in changed))
            try:
                session = restore(path, demo_engine, Settings())
            except SessionError as error:
                refused += 1
                assert "\n" not in str(error) and "fact.jsonl" in str(error)
            else:
                session.close()
                session.reset_adapter()
    assert refused > 5
    assert not any("lora" in name for name, _ in demo_engine.model.named_parameters())


def copied(path: Path, folder: Path) -> Path:
    shutil.copytree(path.with_suffix(".adapter"), folder / path.with_suffix(".adapter").name)
    assert directory_sha256(folder / path.with_suffix(".adapter").name) == directory_sha256(path.with_suffix(".adapter"))
    return Path(shutil.copy(path, folder))
