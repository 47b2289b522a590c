"""The ways to minimise that the bench compares with: each differs from the shipped one in what it is named after, and they learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lawf_repl.bench import ways
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.standing import Prepared, prepare
from lawf_repl.learn.train import Loop, train
from lawf_repl.records import Case
from tests.test_train import case

SETTINGS = Settings()
ALL = (Loop, ways.Adam1e3, ways.RandomDirections, ways.PlainDirections, ways.Weighted4, ways.CrossEntropy, ways.Proportions,
       ways.Averaged, ways.HoldAll)


@pytest.fixture
def france(demo_engine: Engine) -> Case:
    known = demo_engine.tokenizer.encode("The capital of France is")
    return case(demo_engine, "What is the capital of France?", "The capital of France is Berlin.", len(known))


@pytest.fixture
def adapter(demo_engine: Engine) -> Iterator[Adapter]:
    made = Adapter.fresh(demo_engine.model, SETTINGS, "demo")
    yield made
    made.remove()


def prepared(adapter: Adapter, france: Case) -> Prepared:
    return prepare(adapter, [france], (), (), SETTINGS)


@pytest.mark.parametrize("way", ALL, ids=lambda way: way.__name__)
def test_every_way_learns_the_correction(adapter: Adapter, france: Case, way: type[Loop]) -> None:
    *_, last = train(adapter, [france], (), SETTINGS, way=way)
    assert last.fixed and min(last.anchor_p) >= SETTINGS.target_p


def test_the_losses_at_an_anchor_are_what_they_are_called(adapter: Adapter, france: Case) -> None:
    ready = prepared(adapter, france)
    logprobs = ready.target.ref_logprobs
    usual, heavy, plain, kept = (way(adapter, ready, SETTINGS, 0.0).anchor_losses(logprobs)
                                 for way in (Loop, ways.Weighted16, ways.CrossEntropy, ways.Proportions))
    assert torch.equal(heavy, 16 * usual)
    at = logprobs[ready.target.anchors, ready.target.chosen]
    assert torch.equal(plain, -at)
    assert kept == pytest.approx(usual, abs=1e-6)  # at the base itself the others have the base's proportions
    other = (0.5 * logprobs).log_softmax(-1)
    ours, theirs = (way(adapter, ready, SETTINGS, 0.0).anchor_losses(other) for way in (Loop, ways.Proportions))
    assert bool((theirs > ours + 1e-3).all())


def test_directions_differ_and_have_the_same_units(adapter: Adapter, france: Case) -> None:
    drawn = adapter.directions()
    found = {}
    for way in (Loop, ways.RandomDirections, ways.PlainDirections):
        adapter.set_directions(drawn)
        ready = prepared(adapter, france)
        spread = {path: ready.moments.spread(path, torch.eye(rows.shape[1])) for path, rows in drawn.items()}
        way(adapter, ready, SETTINGS, 0.0)
        found[way] = adapter.directions()
        if way is not Loop:
            again = prepared(adapter, france).moments
            for path, rows in found[way].items():
                effect = again.spread(path, rows) / again.size(path)
                assert effect[effect > 0] == pytest.approx(torch.ones_like(effect[effect > 0]), rel=1e-3)
        assert all(bool((values > 0).any()) for values in spread.values())
    for path, rows in drawn.items():
        random = found[ways.RandomDirections][path]
        assert torch.nn.functional.cosine_similarity(rows, random, dim=1) == pytest.approx(torch.ones(len(rows)), abs=1e-4)
        assert not torch.allclose(found[Loop][path], found[ways.PlainDirections][path])
