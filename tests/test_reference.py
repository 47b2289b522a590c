"""What is computed chunk by chunk, from hidden states and with slopes written out, is what autograd finds on whole logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.engine import products
from lawf_repl.engine.rows import rows_at_once
from lawf_repl.errors import OutOfMemory
from lawf_repl.learn import head
from lawf_repl.learn import pool as learn_pool
from lawf_repl.learn import reference as learn_reference
from lawf_repl.learn import standing as learn_standing
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.head import Head
from lawf_repl.learn.lower import Lower
from lawf_repl.learn.objective import finite_logprobs, token_kl
from lawf_repl.learn.pool import Pool, packed
from lawf_repl.learn.reference import Reference, chunks, compare, divergence
from lawf_repl.learn.standing import prepare
from lawf_repl.learn.train import Loop, train
from lawf_repl.records import Anchor, Case
from tests.conftest import make_tiny_model

ROWS = [((1, 60, 70), (80, 90, 100)), ((1, 61, 71, 81, 91), (101, 62)), ((1, 63), (72, 82, 92, 102))]
CASE = Case("x", (1, 60, 70), (80, 90, 100, 110, 120), (Anchor(1, 9, 90, "", "", 1.0, 0.0), Anchor(3, 9, 110, "", "", 0.6, 0.01)))
HEADS = ("plain", "scaled", "capped", "bounded", "adapted")


@pytest.fixture(params=HEADS)
def adapter(request: pytest.FixtureRequest) -> Iterator[Adapter]:
    """An adapter that has learned something, on models that do different things behind their decoder."""
    model = make_tiny_model()
    if request.param == "scaled":
        model.lm_head.register_forward_hook(lambda module, inputs, out: out / 3)
    if request.param == "capped":
        model.lm_head.register_forward_hook(lambda module, inputs, out: 2 * torch.tanh(out / 2))
    if request.param == "bounded":  # what it gives is what its way back needs
        model.lm_head.register_forward_hook(lambda module, inputs, out: torch.tanh(out))
    made = Adapter.fresh(model, Settings(), "tiny")
    torch.manual_seed(1)
    made.restore({name: 0.3 * torch.randn_like(value) for name, value in made.snapshot().items()})
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "adapted":  # as if a LoRA stood on the head
            patch.setattr(head, "_inside", lambda adapter, decoder: False)
        yield made
    made.remove()


@pytest.mark.parametrize("block", [1, 50, 2**18])
@pytest.mark.parametrize("whole", [True, False])
def test_divergence_and_slope_are_those_of_whole_logits(adapter: Adapter, whole: bool, block: int, monkeypatch: pytest.MonkeyPatch,
                                                       request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(learn_reference, "CHUNK_BYTES", 2 * 4 * 259)  # two tokens at a time
    monkeypatch.setattr(head, "BLOCK", block)
    monkeypatch.setattr(head, "LEAST", min(block, 50))
    assert Head(adapter)._is_one_product() == ("plain" in request.node.name)
    lower = Lower(adapter)
    batch = make_batch(ROWS, adapter.base.device)
    with adapter.off(), torch.no_grad():
        base = finite_logprobs(completion_logits(adapter.base, batch))
        reference = Reference.of(lower.head, lower.states(batch), whole)
    parameters = adapter.parameters()
    logits = completion_logits(adapter.base, batch)
    expected = token_kl(base, finite_logprobs(logits))
    gradients = torch.autograd.grad(expected.sum(), parameters)
    states = lower.states(batch)
    found = compare(lower.head, states, reference, slope=True)
    assert torch.allclose(found.kl, expected, atol=1e-5) and float(expected.detach().min()) > 1e-3
    assert torch.equal(found.top, logits.argmax(-1))
    for own, other in zip(torch.autograd.grad(states, parameters, found.slope), gradients, strict=True):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert torch.equal(states, lower.states(batch)), "what is compared is left as it is"
    alone = compare(lower.head, states, reference.at(torch.arange(2, 9)), slope=True, anchors=2)
    assert found.slope is not None and alone.slope is not None and not alone.slope[:2].any(), "nothing is asked of these"
    assert torch.allclose(alone.slope[2:], found.slope[2:], atol=1e-6) and torch.allclose(alone.logprobs.exp().sum(-1), torch.ones(2))
    some = torch.tensor([5, 0, 7])
    assert torch.allclose(reference.at(some).rows(1, 3), base[some[1:]], atol=1e-5)
    assert torch.allclose(Reference.joined([reference.at(some), reference]).rows(2, 5), torch.cat([base[some], base])[2:5], atol=1e-5)


def test_slopes_add_up_to_nothing_with_the_references_own_rounding(adapter: Adapter) -> None:
    """KL of what adds up to more than 1 has a slope of p times that sum less q."""
    own = Head(adapter)
    states = own.states(make_batch(ROWS, adapter.base.device)).detach()
    logprobs = Reference.of(own, states, True).rows(0, 9)
    more = torch.tensor([0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7])
    kept = Reference.of(own, states, True)
    assert kept._mass is not None and kept._logprobs is not None
    kept._logprobs += more[:, None]
    kept._mass *= more.exp()
    joined = Reference.joined([kept.at(torch.arange(3)), kept.at(torch.arange(3, 9))])
    for reference in (kept, Reference(own, states, logprobs + more[:, None]), joined):
        logits = own.free(states)[0]
        divergence(logits, reference.rows(0, 9), reference.mass(0, 9, reference.rows(0, 9)))
        assert torch.allclose(logits.sum(-1), torch.zeros(9), atol=1e-5), "p and q of the same sum"
        assert float(logits.abs().max()) < 1e-5


@pytest.mark.parametrize("odd", ["hooked", "own", "learns", "biased", "half", "fine"])
def test_a_head_is_one_product_only_where_it_is_nothing_else(odd: str) -> None:
    model: Any = make_tiny_model()
    adapter = Adapter.fresh(model, Settings(), "tiny")
    own, states, linear = Head(adapter), torch.randn(4, 32), model.lm_head
    linear.requires_grad_(odd == "learns")
    if odd == "hooked":
        linear.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    if odd == "own":
        linear.forward = lambda x: torch.nn.functional.linear(x, linear.weight) / 2
    if odd == "biased":
        linear.bias = torch.nn.Parameter(torch.randn(259), requires_grad=False)
    if odd == "half":
        model.to(torch.bfloat16)
        states = states.bfloat16()
    assert own._is_one_product() == (odd == "fine")
    logits, back = own.free(states, learns=True)
    leaf = states.clone().requires_grad_()
    expected = own.logits(leaf)
    toward = torch.randn(4, 259)
    assert logits.dtype == torch.float32 and torch.allclose(logits, expected.float(), atol=1e-5)
    slope = torch.autograd.grad(expected, leaf, toward.to(expected.dtype))[0]
    assert torch.allclose(back(toward).float(), slope.float(), rtol=1e-2, atol=1e-2 if odd == "half" else 1e-5)
    logits.zero_()
    assert torch.allclose(own.free(states)[0], expected.float(), atol=1e-5), "it may be written over"


def test_a_head_is_computed_as_its_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN's product does not work no layer was taken over, whatever the processor."""
    adapter = Adapter.fresh(make_tiny_model(), Settings(), "tiny")
    own = Head(adapter)

    def missing(*_: Any) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "by_onednn", missing)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    assert type(adapter.base.lm_head) is torch.nn.Linear
    logits, back = own.free(torch.randn(4, 32), learns=True)
    assert back(logits).shape == (4, 32)


def test_a_model_is_taken_apart_unless_a_lora_stands_on_its_head(adapter: Adapter, request: pytest.FixtureRequest) -> None:
    own = Head(adapter)
    assert own.apart == ("adapted" not in request.node.name) and own.vocabulary == 259
    states = own.states(make_batch(ROWS, adapter.base.device))
    assert states.shape == (9, 32 if own.apart else 259)
    assert not any("forward" in module.__dict__ for module in adapter.base.modules())


def objective(adapter: Adapter) -> tuple[float, list[torch.Tensor]]:
    settings = replace(Settings(), rank=2)
    weights = adapter.snapshot()
    loop = Loop(adapter, prepare(adapter, [CASE], ROWS[1:], (), settings), settings, 0.0)
    adapter.restore(weights)
    loop.hold(ROWS[1:])
    total, gradients, _ = loop._evaluate()
    return total, [gradient.clone() for gradient in gradients]


def test_the_objective_is_the_same_however_much_room_there_is(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    total, gradients = objective(adapter)
    for where, name, value in ((learn_reference, "CHUNK_BYTES", 1), (learn_pool, "KEPT_BYTES", 0), (learn_standing, "KEPT_BYTES", 0),
                               (learn_pool, "HELD_BYTES", 0), (learn_pool, "TOKENS", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            again, others = objective(adapter)
        assert again == pytest.approx(total, rel=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_a_step_is_tried_again_with_layers_that_are_computed_twice(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter.fresh(make_tiny_model(), Settings(), "tiny")
    usual, left, thrifty = Loop._evaluate, [times], []

    def full(loop: Loop) -> Any:
        if loop.steps == 1 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("full")
        thrifty.append(loop.prepared.lower.again.every)
        return usual(loop)

    plain = list(train(Adapter.fresh(make_tiny_model(), Settings(), "tiny"), [CASE], (), replace(Settings(), max_steps=4)))
    monkeypatch.setattr(Loop, "_evaluate", full)
    if times == 2:
        monkeypatch.setattr("lawf_repl.engine.machine.host_memory", lambda: (3 * 2**30, 4 * 2**30))
        monkeypatch.setattr("lawf_repl.engine.memory.psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2**29)))
        with pytest.raises(OutOfMemory, match="out of memory while training") as caught:
            list(train(adapter, [CASE], (), replace(Settings(), max_steps=4)))
        told = str(caught.value)  # what is free, and what this process holds
        assert "in 3.5 GiB there is room for about: float32 783M parameters to generate, 540M to train" in told and told.isprintable()
        return
    steps = list(train(adapter, [CASE], (), replace(Settings(), max_steps=4)))
    assert not thrifty[0] and thrifty[-1]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in plain], rel=1e-4)


def test_what_is_read_together_stays_in_order_and_in_bounds() -> None:
    pairs = [((1,) * length, (2,)) for length in (3, 5, 7, 9, 30)]
    parts = list(packed(pairs, 3, 20))
    assert [pair for part in parts for pair in part] == pairs and len(parts) > 2
    assert all(len(part) == 1 or (len(part) <= 3 and len(part) * max(len(p) + len(c) for p, c in part) <= 20) for part in parts)
    assert list(chunks(0, 10)) == [] and list(chunks(5, 2**40)) == [(i, i + 1) for i in range(5)]


def test_rows_that_are_written_together_take_a_share_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from lawf_repl.engine import rows
    from lawf_repl.engine.cache import CacheKind
    from lawf_repl.engine.greedy import greedy_answers

    model = make_tiny_model()
    prompts = [[1, 60 + i] for i in range(5)]
    together = greedy_answers(model, prompts, [2], 6, kind=CacheKind("cut"))
    assert rows_at_once(model, 100) > 64
    monkeypatch.setattr("lawf_repl.engine.memory.LEAST_BYTES", 0)
    monkeypatch.setattr(rows, "CACHE_SHARE", 2 * 130 * 2 * 4 * 16 * 4 / sum(parameter.nbytes for parameter in model.parameters()))
    assert rows_at_once(model, 130) == 2
    assert greedy_answers(model, prompts, [2], 6, kind=CacheKind("cut")) == together


def test_a_pool_keeps_its_answers_in_order_whatever_they_are_packed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter.fresh(make_tiny_model(), Settings(), "tiny")
    monkeypatch.setattr(learn_pool, "TOKENS", 7)
    pool = Pool(adapter, ROWS, Lower(adapter))
    assert sorted(pool.pairs) == sorted(ROWS) and max(pool.moved()) < 1e-4
    adapter.restore({name: torch.ones_like(value) for name, value in adapter.snapshot().items()})
    held = pool.members([2, 0], 16)
    first, last = (tuple(pool.pairs[i][1]) for i in (0, 2))
    assert [tuple(one.batch.targets.tolist()) for one in held] in ([(*first, *last)], [first, last])
    assert sum(len(one.reference) for one in held) == len(pool.pairs[0][1]) + len(pool.pairs[2][1])
