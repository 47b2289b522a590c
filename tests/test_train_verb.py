"""`lawf train`: one adapter for the accepted answers of several sessions, of one base, that do not contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import TrainingError
from lawf_repl.export.source import read_source
from lawf_repl.session import open_session
from lawf_repl.verbs.train import refuse_other, same_base
from tests.conftest import make_byte_tokenizer, make_tiny_model

AUSTRALIA = ("What is the capital of Australia?", "The capital of Australia is Canberra.")
JAPAN = ("What is the currency of Japan?", "The currency of Japan is the yen.")
PERTH = (AUSTRALIA[0], "The capital of Australia is Perth.")

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick = tmp_path / "quick.toml"
    quick.write_text('preset = "quick"\n')
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: quick)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a session with accepted answers, not trained."""
    def write(engine: Engine, name: str, *answers: tuple[str, str], accept: bool = True) -> Path:
        session = open_session(engine, Settings(), path=tmp_path / name)
        for prompt, right in answers:
            for _ in session.ask(prompt):
                pass
            for _ in session.want(right):
                pass
            if accept:
                session.accept()
        assert session.file is not None
        session.file.close()
        return tmp_path / name
    return write


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = main(["train", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1
    return err


@pytest.mark.usefixtures("same_process")
def test_all_answers_of_all_sessions_come_out_of_one_verified_adapter(demo_engine: Engine, save: Save, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    one, two = save(demo_engine, "one.jsonl", AUSTRALIA), save(demo_engine, "two.jsonl", JAPAN, AUSTRALIA)
    code = main(["train", str(one), str(two), "--out", str(tmp_path / "out"), "--json"])
    trained = json.loads(capsys.readouterr().out)
    assert code == 0 and list(trained) == ["schema", "model", "sessions", "cases", "fixed", "training", "scorecard", "verified", "checks", "adapter"]
    assert trained["schema"] == "lawf.train/1" and trained["fixed"] is True and trained["verified"] is True
    assert [(case["prompt"], case["after"]) for case in trained["cases"]] == [AUSTRALIA, JAPAN]  # the one that both have is trained once
    assert [session["cases"] for session in trained["sessions"]] == [1, 2] and trained["scorecard"]["reliability"] == 1
    about = json.loads((tmp_path / "out" / "lawf.json").read_text())
    assert [case["accepted"] for case in about["cases"]] == [AUSTRALIA[1], JAPAN[1]] and about["recipe"]["rank"] == 4
    for prompt, right in (AUSTRALIA, JAPAN):
        assert main(["answer", prompt, "--adapter", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out == right + "\n"


def test_contradictions_are_all_named_by_session(demo_engine: Engine, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sessions = [save(demo_engine, "one.jsonl", AUSTRALIA), save(demo_engine, "two.jsonl", PERTH), save(demo_engine, "three.jsonl", JAPAN, PERTH)]
    said = refused(capsys, *sessions, "--out", tmp_path / "out")
    assert "2 contradictions" in said and f"{sessions[0]} asks for ' Can' and {sessions[1]} for ' P'" in said and str(sessions[2]) in said
    assert not (tmp_path / "out").exists()


def test_sessions_of_different_bases_are_refused_by_name(demo_engine: Engine, save: Save, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    make_byte_tokenizer().save_pretrained(str(folder))
    make_tiny_model().save_pretrained(str(folder))
    tiny = Engine(make_tiny_model(), make_byte_tokenizer(), str(folder))
    one, two = save(demo_engine, "one.jsonl", AUSTRALIA), save(tiny, "two.jsonl", ("Hello", "Hi"))
    said = refused(capsys, one, two)
    assert f"{one} was made on lawf-demo" in said and f"{two} on {folder}" in said and "config and tokenizer" in said
    assert "is not the base of" in refused(capsys, one, "--model", folder)


def test_a_base_of_other_weights_is_another_base_though_all_else_is_equal(demo_engine: Engine, save: Save) -> None:
    one = read_source(save(demo_engine, "one.jsonl", AUSTRALIA), with_adapter=False)
    other = replace(one, weights="0" * 64)
    same_base([one, one])
    refuse_other(one, demo_engine)
    with pytest.raises(TrainingError, match="another weights"):
        same_base([one, other])
    with pytest.raises(TrainingError, match="another weights"):
        refuse_other(other, demo_engine)
    same_base([one, replace(other, base=one.base | {"dtype": "bfloat16"})])  # a hash of another number type says nothing


def test_what_cannot_be_trained_is_refused_before_any_work(demo_engine: Engine, save: Save, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_answer = save(demo_engine, "open.jsonl", AUSTRALIA, accept=False)
    assert "no accepted answer" in refused(capsys, open_answer)
    monkeypatch.setenv("LAWF_SESSIONS", str(open_answer.parent))
    assert "open.jsonl has no accepted answer" in refused(capsys, Path("open")), "by its name"
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(capsys, open_answer, "--out", tmp_path / "there")
    assert "does not exist" in refused(capsys, tmp_path / "none.jsonl")
    assert "not a lawf session" in refused(capsys, tmp_path / "quick.toml")
