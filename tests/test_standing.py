"""What is won beside the anchors: the token right behind one, where the base is not sure that the corrected word ends there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.standing import END_P, Prepared, prepare
from lawf_repl.learn.train import train
from lawf_repl.records import Anchor, Case

SETTINGS = Settings()
DOZEN = "Extract the order as JSON: Ben orders a dozen plates for Rome."
TWELVE = '{"name": "Ben", "item": "plate", "quantity": 12, "city": "Rome"}'


@pytest.fixture
def adapter(demo_engine: Engine) -> Any:
    made = Adapter.fresh(demo_engine.model, SETTINGS, "demo")
    yield made
    made.remove()


@pytest.fixture
def dozen(demo_engine: Engine) -> Case:
    """12 in place of 10: behind its 2 the base has a comma with 0.97, and another digit with 0.03."""
    assert demo_engine.end_id is not None
    ids = (*demo_engine.tokenizer.encode(TWELVE), demo_engine.end_id)
    place = len(demo_engine.tokenizer.encode(TWELVE[:TWELVE.index("2,")]))
    return Case(DOZEN, demo_engine.prompt_ids([{"role": "user", "content": DOZEN}]), ids, (Anchor(place, 0, ids[place], "0", "2", 1.0, 0.0),))


def won(ready: Prepared) -> list[int]:
    """Places in the batch's completions that are won."""
    return ready.order[:len(ready.target.anchors)].tolist()


def test_the_comma_behind_a_corrected_number_is_won_too_and_is_no_anchor(adapter: Adapter, dozen: Case) -> None:
    place = dozen.anchors[0].position
    ready = prepare(adapter, [dozen], (), (), SETTINGS)
    assert won(ready) == [place, place + 1] and ready.anchors == 1
    assert sorted(ready.order.tolist()) == list(range(len(dozen.completion_ids)))
    assert 0.95 < float(ready.target.ref_logprobs[1, dozen.completion_ids[place + 1]].exp()) < END_P

    *_, last = train(adapter, [dozen], (), SETTINGS)
    assert len(last.anchor_p) == 1 and last.fixed
    with torch.no_grad():
        p = completion_logits(adapter.base, make_batch([(dozen.prompt_ids, dozen.completion_ids)], torch.device("cpu"))).softmax(-1)
    assert float(p[place + 1, dozen.completion_ids[place + 1]]) > 0.998


def test_what_the_base_is_sure_of_or_was_told_softly_or_ends_with_is_held_as_ever(adapter: Adapter, dozen: Case, demo_engine: Engine) -> None:
    (anchor,) = dozen.anchors
    for other in (replace(anchor, confidence=0.9), replace(anchor, position=4, chosen_id=dozen.completion_ids[4]),
                  replace(anchor, position=len(dozen.completion_ids) - 1, chosen_id=dozen.completion_ids[-1])):
        assert won(prepare(adapter, [replace(dozen, anchors=(other,))], (), (), SETTINGS)) == [other.position]


def test_of_several_answers_each_end_is_its_own(tiny_engine: Engine) -> None:
    engine = tiny_engine
    prompts = [(1, 60, 70), (1, 80, 90, 100)]
    answers = []
    for prompt in prompts:  # a forced token, and what the model goes on with: it is sure of nothing
        (more,) = greedy_answers(engine.model, [[*prompt, 5]], frozenset(), 4, kind=engine.cache_kind)
        answers.append((5, *more))
    first, second = (Case("", prompt, answer, (Anchor(0, 0, 5, "", "x", 1.0, 0.0),)) for prompt, answer in zip(prompts, answers, strict=True))
    adapter = Adapter.fresh(engine.model, SETTINGS, "tiny")
    assert won(prepare(adapter, [first, second], (), (), SETTINGS)) == [0, 5, 1, 6]
    last = replace(first, anchors=(Anchor(4, 0, first.completion_ids[4], "", "x", 1.0, 0.0),))
    (own,) = greedy_answers(engine.model, [prompts[1]], frozenset(), 4, kind=engine.cache_kind)
    other = Case("", prompts[1], tuple(own), (Anchor(3, 0, own[3], "", "x", 1.0, 0.0),))
    assert won(prepare(adapter, [last, other], (), (), SETTINGS)) == [4, 8]  # the token behind it is another answer's
    both = replace(first, anchors=(*first.anchors, Anchor(1, 0, first.completion_ids[1], "", "x", 0.5, 0.0)))
    assert won(prepare(adapter, [both], (), (), SETTINGS)) == [0, 1]  # an anchor itself
    sampled = replace(first, completion_ids=(5, (first.completion_ids[1] + 1) % 259, *first.completion_ids[2:]))
    assert won(prepare(adapter, [sampled], (), (), SETTINGS)) == [0]  # nobody chose it, nobody corrected it
