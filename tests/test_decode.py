"""Decoding: the cache after a cut, the statistics of a token, sampling, stopping."""

from __future__ import annotations

import math

import pytest
import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import KeptCache
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.errors import PromptError, Stopped
from lawf_repl.records import Token

PROMPT = [1, 60, 70, 80, 90, 100]


def full_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def test_logits_after_a_cut_at_every_position_equal_a_full_forward(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    tokens = list(decoder.generate(PROMPT, (), Sampling(max_tokens=40)))
    ids = PROMPT + [token.id for token in tokens]
    for cut in reversed(range(1, len(ids))):  # ever deeper cuts of one cache
        behind = [*ids[:cut], 200, 33]
        logits = decoder.logits_at(behind, 3)
        assert torch.allclose(logits, full_logits(tiny_engine, behind)[-3:], atol=1e-4)


def test_going_on_after_a_correction_costs_one_chunk_and_not_a_prefill(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    tokens = list(decoder.generate(PROMPT, (), Sampling(max_tokens=20)))
    fed: list[int] = []
    feed = decoder.cache.feed
    decoder.cache.feed = lambda ids, keep: (fed.append(len(ids)), feed(ids, keep))[1]  # type: ignore[method-assign,func-returns-value]
    list(decoder.generate(PROMPT, [200], Sampling(max_tokens=18), known=tokens[:12]))
    assert fed[0] == 2  # the last kept token, whose logits judge the fix, and the fix
    assert set(fed[1:]) == {1}


def test_an_interrupted_forward_leaves_no_stale_states(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KeptCache(tiny_engine.model)
    cache.feed(PROMPT, 1)

    def broken(logits_to_keep: int, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny_engine.model, "forward", broken)
        with pytest.raises(KeyboardInterrupt):
            cache.feed([5], 1)
    assert cache.ids == [] and cache.keep_prefix(PROMPT) == 0


def test_statistics_are_those_of_the_untempered_distribution(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    tokens = list(decoder.generate(PROMPT, (), Sampling(max_tokens=8, temperature=1.5, top_p=0.9, seed=3)))
    ids = PROMPT + [token.id for token in tokens]
    probabilities = torch.softmax(full_logits(tiny_engine, ids), -1)[len(PROMPT) - 1:-1]
    for token, row in zip(tokens, probabilities, strict=True):
        assert token.p == pytest.approx(float(row[token.id]), abs=1e-5)
        assert token.rank == int((row > row[token.id]).sum())
        assert token.entropy == pytest.approx(float(-(row * row.log()).sum()), abs=1e-3)
        assert [a.id for a in token.alternatives] == row.topk(8).indices.tolist()


def test_sampling_repeats_with_its_seed_and_greedy_takes_the_top(tiny_engine: Engine) -> None:
    def run(sampling: Sampling) -> list[int]:
        return [token.id for token in Decoder(tiny_engine).generate(PROMPT, (), sampling)]

    warm = Sampling(max_tokens=20, temperature=1.0, seed=1)
    assert run(warm) == run(warm)
    assert run(warm) != run(Sampling(max_tokens=20, temperature=1.0, seed=2))
    assert all(token.rank == 0 for token in Decoder(tiny_engine).generate(PROMPT, (), Sampling(max_tokens=20)))
    assert run(Sampling(max_tokens=20)) == run(Sampling(max_tokens=20, temperature=1.0, top_p=1e-9))


def test_stopping_keeps_what_is_there(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    seen: list[Token] = []
    for token in decoder.generate(PROMPT, (), Sampling(max_tokens=30), stop=lambda: len(seen) >= 3):
        seen.append(token)
    assert decoder.last is not None
    assert decoder.last.finish == "interrupted" and list(decoder.last.tokens) == seen and len(seen) == 3


def test_an_answer_ends_at_the_limit_or_the_context(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    list(decoder.generate(PROMPT, (), Sampling(max_tokens=5)))
    assert decoder.last is not None and decoder.last.finish == "length" and len(decoder.last.tokens) == 5
    with pytest.raises(PromptError, match="the prompt has 256 tokens and the model's context is 256"):
        list(decoder.generate([60] * 256, (), Sampling()))
    with pytest.raises(PromptError, match="empty"):
        list(decoder.generate([], (), Sampling()))
    list(decoder.generate([60] * 250, (), Sampling()))
    assert len(decoder.last.tokens) <= 6


def test_a_forced_end_of_turn_ends_the_answer(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine)
    tokens = list(decoder.generate(PROMPT, [70, 2], Sampling(max_tokens=9)))
    assert [token.id for token in tokens] == [70, 2]
    assert decoder.last is not None and decoder.last.finish == "eos" and decoder.last.text == "C"


def test_many_answers_can_be_stopped_at_any_token(tiny_engine: Engine) -> None:
    prompts, asked = [list(range(40, 50)), list(range(50, 55))], 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Stopped):
        greedy_answers(tiny_engine.model, prompts, (), 12, stop=stop)
    assert asked == 6
    assert greedy_answers(tiny_engine.model, prompts, (), 3, stop=lambda: False) == greedy_answers(tiny_engine.model, prompts, (), 3)


def test_many_answers_end_where_the_context_does(tiny_engine: Engine) -> None:
    prompts = [list(range(40, 40 + length)) for length in (3, 20, 9, 24, 23)]
    answers = greedy_answers(tiny_engine.model, prompts, (), 12, context=24)
    assert [len(answer) for answer in answers] == [12, 4, 12, 0, 1]
    assert answers[2][:1] == greedy_answers(tiny_engine.model, [prompts[2]], (), 1)[0]
    assert greedy_answers(tiny_engine.model, prompts, (), 0) == [[]] * 5 and greedy_answers(tiny_engine.model, [], (), 3) == []


def test_many_greedy_answers_equal_one_at_a_time(demo_engine: Engine) -> None:
    prompts = [demo_engine.prompt_ids([{"role": "user", "content": text}]) for text in
               ("What is the capital of France?", "What is the capital of Spain?", "Sort from low to high: 7, 3, 9", "你好")]
    decoder = Decoder(demo_engine)
    for prompt, many in zip(prompts, greedy_answers(demo_engine.model, prompts, demo_engine.end_ids, 30), strict=True):
        assert [token.id for token in decoder.generate(prompt, (), Sampling(30))] == many
        assert not math.isnan(decoder.last.tokens[0].entropy)  # type: ignore[union-attr]
