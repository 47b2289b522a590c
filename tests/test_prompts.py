"""What is held and measured on: disjoint, answered by the base, answered once a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from platformdirs import user_cache_path

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import PromptError, UsageError
from lawf_repl.measure import prompts as module
from lawf_repl.measure.answers import KeptAnswers, weights_sha256
from lawf_repl.measure.probes import ROWS, ProbeSet, base_answers
from lawf_repl.measure.prompts import GENERAL_PROMPTS, Prompts, load_probes
from lawf_repl.session import Session
from tests.conftest import make_byte_tokenizer, make_tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(user_cache_path("lawf", appauthor=False)) / "answers"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(module, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(module, "base_answers", lambda engine, ids: base_answers(engine, ids, 6))
    return Engine(make_tiny_model(), make_byte_tokenizer(), "tiny")


def chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def answer(prompts: Prompts) -> list[tuple[int, int]]:
    return list(prompts.answer())


def test_the_general_set_is_half_english_half_chinese_and_split_by_skill() -> None:
    rows = [json.loads(line) for line in GENERAL_PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200 == len({row["prompt"] for row in rows})
    found = Counter((row["use"], chinese(row["prompt"])) for row in rows)
    assert found == {(use, either): 50 for use in ("probe", "replay") for either in (True, False)}
    assert [row["use"] for row in rows] == ["replay", "probe"] * 100


def test_the_demo_model_has_its_own_and_they_are_answered_already(demo_engine: Engine, demo_probe_set: ProbeSet) -> None:
    prompts = load_probes(demo_engine, Settings())
    assert prompts.answered == demo_probe_set and not prompts.missing() and len(demo_probe_set.probes) >= 200


def test_any_other_model_answers_the_general_set_once(engine: Engine, cache: Path) -> None:
    prompts = load_probes(engine, Settings())
    assert prompts.answered == ProbeSet() and len(prompts.missing()) > 150  # a small context has no room for a few
    progress = answer(prompts)
    assert progress[0] == (0, progress[-1][1]) and progress[-1][0] == progress[-1][1] and not prompts.missing()
    found = prompts.answered
    assert {ids for ids, _ in found.probes}.isdisjoint(ids for ids, _ in found.replay) and min(len(found.probes), len(found.replay)) > 75
    some = [ids for ids, _ in found.replay[:5]]
    assert [list(ids) for _, ids in found.replay[:5]] == base_answers(engine, some, 6)
    assert len(list(cache.iterdir())) == 1
    again = load_probes(engine, Settings())
    assert not again.missing() and again.answered == found and answer(again) == []
    other = Engine(make_tiny_model(seed=5), make_byte_tokenizer(), "tiny")  # the same shape and name, other weights
    assert load_probes(other, Settings()).missing()


def test_stopping_keeps_what_was_answered(engine: Engine) -> None:
    prompts = load_probes(engine, Settings())
    asked = iter([False, False, True])
    list(prompts.answer(lambda: next(asked)))
    done = len(prompts.answered.replay)
    assert done == 2 * ROWS and len(load_probes(engine, Settings()).missing()) == len(prompts.missing())


@pytest.mark.parametrize("damage", [b"", b"{", b'{"lawf_answers": 1}', b'{"lawf_answers": 2, "answers": []}', b"\xff", b"[" * 100_000,
                                    b'{"lawf_answers": 1, "answers": [[[1], [99999999]]]}', b'{"lawf_answers": 1, "answers": [[[1], []]]}'])
def test_a_damaged_file_of_answers_counts_as_none(engine: Engine, cache: Path, damage: bytes) -> None:
    kept = KeptAnswers(engine, 6)
    kept.write({(1, 2): (3, 4)})
    assert kept.read() == {(1, 2): (3, 4)}
    kept.path.write_bytes(damage)
    assert KeptAnswers(engine, 6).read() == {}
    kept.write({(1, 2): (3, 5)})
    assert KeptAnswers(engine, 6).read() == {(1, 2): (3, 5)} and [path.suffix for path in cache.iterdir()] == [".json"]


def test_a_cache_that_cannot_be_written_is_done_without(engine: Engine, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    prompts = load_probes(engine, Settings())
    answer(prompts)
    assert prompts.answered.replay and cache.read_text() == "in the way"


def test_the_fingerprint_is_of_the_base_whatever_adapter_is_on_it(engine: Engine) -> None:
    before = weights_sha256(engine.model)
    session = Session(engine, Settings(max_tokens=6, max_steps=2))
    list(session.ask("What?"))
    list(session.replace(1, "Q"))
    list(session.end(3))
    session.accept()
    list(session.train())
    assert session.has_adapter and weights_sha256(engine.model) == before
    session.reset_adapter()
    with torch.no_grad():
        next(iter(engine.model.parameters())).mul_(1.5)
    assert weights_sha256(engine.model) != before


def test_files_of_the_users_take_the_place_of_either(engine: Engine, demo_engine: Engine, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("What is the capital of Spain?\nWhat is the capital of Peru?\n")
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "What is the capital of Peru?"}\n"Hello"\n')
    prompts = load_probes(engine, Settings(probes=str(mine), replay_prompts=str(other)))
    assert len(prompts.missing()) == 3  # what is measured on is not held
    answer(prompts)
    assert [len(prompts.answered.probes), len(prompts.answered.replay)] == [2, 1]
    mixed = load_probes(demo_engine, Settings(probes=str(mine)))
    answer(mixed)
    assert len(mixed.answered.probes) == 2 and len(mixed.answered.replay) > 60
    mine.write_text("a" * 5000)
    with pytest.raises(PromptError, match=r"mine\.txt: a prompt has \d+ tokens"):
        load_probes(engine, Settings(probes=str(mine)))
    with pytest.raises(UsageError, match="cannot be read"):
        load_probes(engine, Settings(replay_prompts=str(tmp_path / "none")))


def test_a_large_model_on_a_cpu_answers_fewer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_WORK", 40 * sum(parameter.numel() for parameter in engine.model.parameters()))
    prompts = load_probes(engine, Settings())
    assert 30 <= len(prompts.missing()) <= 40
    languages = Counter(chinese(engine.tokenizer.decode(ids)) for ids in prompts.missing())
    assert min(languages.values()) >= 12
    monkeypatch.setattr(module, "CPU_WORK", 1)
    assert 8 <= len(load_probes(engine, Settings()).missing()) <= module.FEWEST


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    session = Session(engine, Settings(max_tokens=12, max_steps=3, variations=4), load_probes(engine, Settings()))
    yield session
    session.reset_adapter()


def test_a_training_prepares_itself_and_an_interrupted_preparation_goes_on(session: Session) -> None:
    list(session.ask("What?"))
    list(session.replace(1, "Q"))
    list(session.end(3))
    session.accept()
    pressed = iter([False, True])
    list(session.prepare(lambda: next(pressed, True)))
    assert 0 < len(session.probes.replay) <= ROWS
    whats = {progress.what for progress in session.prepare()}
    assert whats == {"answers to general prompts, once for this model", "variations of the corrected prompt"}
    assert list(session.prepare()) == []
    steps = list(session.train())
    assert steps[0].drift is not None and len(session.probes.replay) > 75
    assert session.scorecard(session.rerun()).probes is not None
