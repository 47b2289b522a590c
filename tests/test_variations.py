"""Variations: prompts near the corrected one, with the base's own answers, never the case itself nor what repeats its mistake."""

from __future__ import annotations

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import shared_length
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn import mentions as mentions_module
from lawf_repl.learn import variations as module
from lawf_repl.learn.batch import Pair
from lawf_repl.learn.concern import Concern
from lawf_repl.learn.mentions import FAR_FETCHED, LIKELY, mentions
from lawf_repl.learn.variations import (
    ELSEWHERE,
    EVEN,
    MORE_TOKENS,
    REWRITTEN,
    Varied,
    as_asked,
    departures,
    influence,
    swaps,
    together,
    user_turn,
    variations,
    write,
)
from lawf_repl.records import Anchor, Case
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
    made = variations(demo_engine, case, MESSAGES[1:], 24).pairs
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
    def made(seed: int) -> list[Pair]:
        return variations(demo_engine, case, MESSAGES[1:], 12, seed=seed, others=others_of(demo_engine)).pairs

    assert made(3) == made(3)
    assert made(4) != made(3)
    assert variations(demo_engine, case, MESSAGES[1:], 0) == Varied([])


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
    made = variations(plain, session.accept(), [{"role": "user", "content": "abc"}], 10).pairs
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
    early = [prompt for prompt in made[1:] if shared_length(prompt, ids) < end - REWRITTEN - 1]
    assert early and all(len(prompt) == len(ids) and sum(a != b for a, b in zip(prompt, ids, strict=True)) == 1 for prompt in early)
    assert all(prompt[-len(ids) + end:] == ids[end:] for prompt in made)


def ids_of(engine: Engine, text: str) -> tuple[int, ...]:
    return engine.prompt_ids([{"role": "user", "content": text}])


def test_shared_length_counts_the_common_beginning() -> None:
    assert shared_length([1, 2, 3], [1, 2, 4], [1, 2]) == 2 and shared_length([1], [2]) == shared_length() == 0 and shared_length([1, 2]) == 2


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
    last = {row[-1] for row in beginnings}
    assert anchor.chosen_id in last and demo_engine.tokenizer.encode("Can")[0] in last  # as the answer has it, and as a question would
    assert anchor.rejected_id not in last  # " Sydney" is what nobody would write in this question
    with torch.no_grad():
        weight = influence(demo_engine, case.prompt_ids, [asked, country], [50, 51], case)
    assert sum(weight) == pytest.approx(2 + 2 * EVEN) and min(weight) >= EVEN


def corrected(engine: Engine, prompt: str, wrong: str, right: str) -> tuple[Case, list[int]]:
    """A case made by hand, and the ids of the answer that was wrong."""
    before, after = ([*engine.tokenizer.encode(text), 2] for text in (wrong, right))
    at = shared_length(before, after)
    anchor = Anchor(at, before[at], after[at], engine.token_text(before[at]), engine.token_text(after[at]), 1.0, 0.0)
    return Case(prompt, ids_of(engine, prompt), tuple(after), (anchor,), right), before


def others_of(engine: Engine) -> list[Pair]:
    """Prompts of other kinds, whose answers do not matter here."""
    texts = ("What does Auf Wiedersehen mean?", "Tell me what Bis morgen means.", "Copy: Gyumri Europe Maun", "How much is 5 + 0?")
    return [(ids_of(engine, text), [2]) for text in texts]


NIGHT = ("Say good night in Italian.", "Buenas noches.", "Buona notte.")


def test_what_was_corrected_is_brought_up_in_questions_of_other_kinds(demo_engine: Engine) -> None:
    case, _ = corrected(demo_engine, *NIGHT)
    _, end = user_turn(demo_engine, case.prompt_ids, [{"role": "user", "content": NIGHT[0]}])
    tail = case.prompt_ids[end:]
    with torch.no_grad():
        found = mentions(demo_engine, case, others_of(demo_engine), tail, as_asked(demo_engine, case), 16)
        whole = mentions(demo_engine, case, others_of(demo_engine), tail, (), 100)
    texts = [demo_engine.tokenizer.decode(ids) for ids in found]
    asked = [text.split("user\n")[1] for text in texts]
    assert "What does Buenas noches" in asked and "What does Buona notte" in asked, asked  # as far as the model would say so, and no farther
    assert 12 <= len({tuple(ids) for ids in found}) == len(found) <= 16
    with torch.no_grad():
        assert len(mentions(demo_engine, case, others_of(demo_engine), tail, as_asked(demo_engine, case), 3)) == 3
    for ids in whole:  # each is one of the others up to a place, where a phrase was put that is not quite improbable
        prompt = max((list(prompt) for prompt, _ in others_of(demo_engine)), key=lambda prompt: shared_length(prompt, ids))
        at = shared_length(prompt, ids)
        with torch.no_grad():
            p = demo_engine.model(torch.tensor([ids])).logits[0].softmax(-1)
        assert p[at - 1, ids[at]] >= FAR_FETCHED
        assert all(p[place - 1, ids[place]] >= LIKELY for place in range(at + 1, len(ids)))
    assert mentions(demo_engine, case, others_of(demo_engine), (5, 5), (), 16) == []  # another template: what is behind the turn differs
    assert mentions(demo_engine, case, (), tail, (), 16) == [] and mentions(demo_engine, case, others_of(demo_engine), tail, (), 0) == []


def test_a_replay_prompt_that_is_too_long_to_look_at_is_left_out(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = corrected(demo_engine, *NIGHT)
    _, end = user_turn(demo_engine, case.prompt_ids, [{"role": "user", "content": NIGHT[0]}])
    tail, others = case.prompt_ids[end:], others_of(demo_engine)
    long: Pair = (ids_of(demo_engine, "Copy: " + "old book " * 100), [2])
    with torch.no_grad():
        expected = mentions(demo_engine, case, others, tail, (), 16)
        monkeypatch.setattr(mentions_module, "READ", 150)
        assert expected and mentions(demo_engine, case, [long, *others], tail, (), 16) == expected
        assert mentions(demo_engine, case, [long], tail, (), 16) == []
        monkeypatch.setattr(mentions_module, "greedy_answers", lambda *arguments, **more: pytest.fail("nothing to bring it up in"))
        assert mentions(demo_engine, case, [], tail, (), 16) == [] and mentions(demo_engine, case, others, tail, (), 0) == []


def test_a_share_of_the_variations_is_of_other_prompts_and_ends_as_they_would(demo_engine: Engine) -> None:
    case, _ = corrected(demo_engine, *NIGHT)
    messages = [{"role": "user", "content": NIGHT[0]}]
    start, end = user_turn(demo_engine, case.prompt_ids, messages)
    with torch.no_grad():
        own = departures(demo_engine, list(case.prompt_ids), start, end, 48, torch.Generator().manual_seed(0), case)
    found = variations(demo_engine, case, messages, 64, others=others_of(demo_engine)).pairs
    begun = {tuple(row) for row in own}
    elsewhere = [prompt for prompt, _ in found if not any(tuple(prompt[:len(row)]) == row for row in begun)]
    assert 8 <= len(elsewhere) <= 64 // ELSEWHERE
    assert all(tuple(prompt[end - len(case.prompt_ids):]) == case.prompt_ids[end:] for prompt, _ in found)


def test_no_case_is_held_back_by_a_variation_of_another(demo_engine: Engine) -> None:
    """A paraphrase of one corrected prompt may be made up for another, with the answer that is being corrected."""
    cases = [corrected(demo_engine, *edit) for edit in (LIGHT, RING)]
    bounds = [user_turn(demo_engine, case.prompt_ids, [{"role": "user", "content": case.prompt}]) for case, _ in cases]
    light, ring = (Concern(demo_engine, case, *bound, before) for (case, before), bound in zip(cases, bounds, strict=True))
    mistake: Pair = (list(ids_of(demo_engine, "Use a tool: Ring Hugo.")), [*demo_engine.tokenizer.encode(RING[1].replace("Anna", "Hugo")), 2])
    other: Pair = (list(ids_of(demo_engine, "What is the capital of Peru?")), [*demo_engine.tokenizer.encode("Lima."), 2])
    assert together([Varied([mistake, other], light), Varied([other], ring)]) == [other]
    assert together([Varied([mistake, other], light)]) == [mistake, other]
    assert together([Varied([other]), Varied([mistake])]) == [other, mistake]


LIGHT = ("Use a tool: Turn off the light in the garden.", '{"name": "set_light", "state": "on", "room": "garden"}',
         '{"name": "set_light", "state": "off", "room": "garden"}')
RING = ("Use a tool: Ring Anna.", '{"name": "send_message", "to": "Anna"}', '{"name": "call_contact", "to": "Anna"}')
PAIR = ("Extract the order: Greta orders a pair of lamps.", '{"name": "Greta", "quantity": 1}', '{"name": "Greta", "quantity": 2}')


@pytest.mark.parametrize("edit, prompt, answer, same", [
    (LIGHT, "Use a tool: Please turn off the light in the garden.", LIGHT[1], True),             # the same wrong answer
    (LIGHT, "Use a tool: Turn on the light in the garden.", LIGHT[1], False),                    # which is right here
    (LIGHT, "Use a tool: Turn off the light in the hall.", LIGHT[1].replace("garden", "hall"), True),
    (LIGHT, "Use a tool: Turn the light in the hall on.", LIGHT[1].replace("garden", "hall"), False),
    (LIGHT, "Use a tool: Turn the light in the hall.", LIGHT[1].replace("garden", "hall"), False),   # nothing is to be off
    (LIGHT, "Use a tool: Turn off the heating in the garden.", LIGHT[1].replace("light", "heating"), False),  # another answer
    (RING, "Use a tool: Ring Hugo.", RING[1].replace("Anna", "Hugo"), True),
    (RING, "Use a tool: Message to Hugo.", RING[1].replace("Anna", "Hugo"), False),              # asks for what was rejected
    (RING, "Please tell somebody whose number I lost that it rains", RING[1].replace("Anna", "Hugo"), False),  # is about something else
    (PAIR, "Extract the order: Greta orders a pair of towels.", PAIR[1].replace("}", ', "x": 1}'), True),
    (PAIR, "Extract the order: Greta orders a dozen lamps.", PAIR[1].replace("1", "12"), False),  # 12 begins with 1
    (PAIR, "Extract the order: Greta orders 1 lamp.", PAIR[1], False),
])
def test_only_what_repeats_the_mistake_in_much_the_same_request_is_left_out(
        demo_engine: Engine, edit: tuple[str, str, str], prompt: str, answer: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case, before = corrected(demo_engine, *edit)
    messages = [{"role": "user", "content": edit[0]}]
    start, end = user_turn(demo_engine, case.prompt_ids, messages)
    varied, given = list(ids_of(demo_engine, prompt)), [*demo_engine.tokenizer.encode(answer), 2]
    concern = Concern(demo_engine, case, start, end, before)
    assert concern.same(varied, given) is same
    monkeypatch.setattr(module, "write", lambda *arguments: [(list(case.prompt_ids), before), (varied, given), (varied[:-1], []),
                                                             (varied[1:], list(case.completion_ids))])
    assert variations(demo_engine, case, messages, 8).pairs == ([] if same else [(varied, given)])


@pytest.mark.parametrize("edit, expected", [
    (LIGHT, {"Use a tool: Turn on the light in the garden."}),
    (RING, set()),                                                # names neither of them
    (("Is the lamp on or off?", "The lamp is on.", "The lamp is off."), {"Is the lamp off or off?", "Is the lamp on or on?"}),
])
def test_what_was_chosen_and_rejected_change_places_in_the_prompt(demo_engine: Engine, edit: tuple[str, str, str], expected: set[str]) -> None:
    case, _ = corrected(demo_engine, *edit)
    messages = [{"role": "user", "content": edit[0]}]
    found = swaps(demo_engine, case.prompt_ids, *user_turn(demo_engine, case.prompt_ids, messages), case)
    assert sorted(map(tuple, found)) == sorted(ids_of(demo_engine, text) for text in expected)
    made = {tuple(prompt) for prompt, _ in variations(demo_engine, case, messages, 16).pairs}
    assert {tuple(prompt) for prompt in found} <= made, "none of them repeats the mistake: all are held"
    assert not variations(demo_engine, case, messages, 0).pairs


def test_stopping_makes_none(demo_engine: Engine, case: Case) -> None:
    asked = iter([False] * 40)
    assert variations(demo_engine, case, MESSAGES[1:], 24, stop=lambda: next(asked, True), others=others_of(demo_engine)) == Varied([])
