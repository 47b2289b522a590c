"""Variations: prompts near the corrected one, with the base's own answers, never the case itself nor what repeats its mistake."""

from __future__ import annotations

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn import variations as module
from lawf_repl.learn.variations import EVEN, MORE_TOKENS, REWRITTEN, departures, influence, shared, user_turn, variations, write
from lawf_repl.records import Case
from lawf_repl.session import Session
from tests.conftest import make_byte_tokenizer, make_tiny_model

QUESTION = "What is the capital of Australia?"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


@pytest.fixture
def case(demo_session: Session) -> Case:
    list(demo_session.ask(QUESTION))
    list(demo_session.want("The capital of Australia is Canberra."))
    return demo_session.accept()


def test_they_differ_within_the_users_turn_only_and_have_the_bases_answers(demo_engine: Engine, case: Case) -> None:
    made = variations(demo_engine, case, MESSAGES[1:], 24)
    start, end = user_turn(demo_engine, case.prompt_ids, MESSAGES[1:])
    assert demo_engine.tokenizer.decode(case.prompt_ids[start:end]) == QUESTION
    head, tail = case.prompt_ids[:start], case.prompt_ids[end:]
    assert 12 <= len(made) <= 24 and len({tuple(prompt) for prompt, _ in made}) == len(made)
    for prompt, _ in made:
        assert tuple(prompt[:start]) == head and tuple(prompt[-len(tail):]) == tail and tuple(prompt) != case.prompt_ids
        assert demo_engine.end_ids.isdisjoint(prompt[start:-len(tail)])
    assert [list(answer) for _, answer in made] == greedy_answers(demo_engine.model, [prompt for prompt, _ in made], demo_engine.end_ids, 96)
    before = greedy_answers(demo_engine.model, [case.prompt_ids], demo_engine.end_ids, 96)[0]
    assert before not in [answer for _, answer in made] and list(case.completion_ids) not in [answer for _, answer in made]


def test_the_same_seed_makes_the_same_and_none_can_be_asked_for(demo_engine: Engine, case: Case) -> None:
    assert variations(demo_engine, case, MESSAGES[1:], 12, seed=3) == variations(demo_engine, case, MESSAGES[1:], 12, seed=3)
    assert variations(demo_engine, case, MESSAGES[1:], 12, seed=4) != variations(demo_engine, case, MESSAGES[1:], 12, seed=3)
    assert variations(demo_engine, case, MESSAGES[1:], 0) == []


def test_the_turn_is_found_behind_other_messages_and_without_a_template(demo_engine: Engine) -> None:
    ids = demo_engine.prompt_ids(MESSAGES)
    start, end = user_turn(demo_engine, ids, MESSAGES)
    assert demo_engine.tokenizer.decode(ids[start:end]) == QUESTION
    plain = Engine(make_tiny_model(), make_byte_tokenizer(None), "plain")
    ids = plain.prompt_ids(MESSAGES[1:])
    assert user_turn(plain, ids, MESSAGES[1:]) == (0, len(ids))
    session = Session(plain, Settings(max_tokens=8))
    list(session.ask("abc"))
    list(session.replace(1, "Q"))
    list(session.end(3))
    made = variations(plain, session.accept(), [{"role": "user", "content": "abc"}], 10)
    assert made
    assert all(len(prompt) == 3 and sum(a != b for a, b in zip(prompt, ids_of(plain, "abc"), strict=True)) == 1 for prompt, _ in made)


def test_a_long_prompt_gets_few_variations_that_keep_most_of_it(demo_engine: Engine, case: Case) -> None:
    text = "Repeat: " + "the old book and the new lamp " * 60
    ids = list(demo_engine.prompt_ids([{"role": "user", "content": text}]))
    start, end = user_turn(demo_engine, ids, [{"role": "user", "content": text}])
    assert end > 300
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        beginnings = departures(demo_engine, ids, start, end, 12, drawn, case)
    made = [prompt for prompt, _ in write(demo_engine, ids, end, ids[end:end + 1], beginnings, drawn, lambda: False)]
    assert made[0] == ids and 8 <= len(made) <= 13 and all(abs(len(prompt) - len(ids)) <= MORE_TOKENS + REWRITTEN for prompt in made)
    early = [prompt for prompt in made[1:] if shared([prompt, ids]) < end - REWRITTEN - 1]
    assert early and all(len(prompt) == len(ids) and sum(a != b for a, b in zip(prompt, ids, strict=True)) == 1 for prompt in early)
    assert all(prompt[-len(ids) + end:] == ids[end:] for prompt in made)


def ids_of(engine: Engine, text: str) -> tuple[int, ...]:
    return engine.prompt_ids([{"role": "user", "content": text}])


def test_shared_counts_the_common_beginning() -> None:
    assert shared([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2 and shared([[1], [2]]) == 0


def test_most_are_where_the_prompt_decides_its_answer_and_some_bring_up_what_was_corrected(demo_engine: Engine, case: Case) -> None:
    start, end = user_turn(demo_engine, case.prompt_ids, MESSAGES[1:])
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        beginnings = departures(demo_engine, case.prompt_ids, start, end, 64, drawn, case)
    assert len(beginnings) == 64 and all(row[:-1] == list(case.prompt_ids[:len(row) - 1]) for row in beginnings)
    assert len({tuple(row) for row in beginnings}) == 64
    places = [len(row) - 1 for row in beginnings]
    country = next(place for place in range(start, end) if demo_engine.tokenizer.decode([case.prompt_ids[place]]).strip() == "Australia")
    asked = next(place for place in range(start, end) if demo_engine.tokenizer.decode([case.prompt_ids[place]]).strip() == "What")
    assert places.count(country) > 3 * places.count(asked) >= 3
    anchor = case.anchors[0]
    assert {anchor.rejected_id, anchor.chosen_id} <= {row[-1] for row in beginnings}
    with torch.no_grad():
        weight = influence(demo_engine, case.prompt_ids, [asked, country], [50, 51], case)
    assert sum(weight) == pytest.approx(2 + 2 * EVEN) and min(weight) >= EVEN


def test_what_repeats_the_mistake_in_nearly_the_same_request_is_left_out(demo_engine: Engine, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = case.anchors[0]
    mistake = [*case.completion_ids[:anchor.position], anchor.rejected_id, 7]
    ids = list(case.prompt_ids)
    start, end = user_turn(demo_engine, ids, MESSAGES[1:])
    near, far = [*ids[:end - 1], 50, *ids[end:]], [*ids[:start], 50, *ids[start + 1:]]
    rows = [(ids, [9]), (near, mistake), (far, mistake), (near[:-1], [8]), (far[:-1], list(case.completion_ids)), ([*far, 3], [9]), (far[:-2], [])]
    monkeypatch.setattr(module, "write", lambda *arguments: rows)
    assert variations(demo_engine, case, MESSAGES[1:], 8) == [(near[:-1], [8]), (far, mistake)]


def test_stopping_makes_none(demo_engine: Engine, case: Case) -> None:
    asked = iter([False] * 40)
    assert variations(demo_engine, case, MESSAGES[1:], 24, stop=lambda: next(asked, True)) == []
