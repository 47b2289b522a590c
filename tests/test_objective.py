"""The objective against its definition, written out naively."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.objective import lawf_loss, make_target, token_kl
from lawf_repl.records import Anchor
from tests.conftest import make_tiny_model


def anchor(position: int, chosen: int, confidence: float) -> Anchor:
    return Anchor(position, 0, chosen, "", "", confidence, 0.0)


def naive_loss(ref: torch.Tensor, theta: torch.Tensor, anchors: dict[int, Anchor]) -> float:
    """Section 1 of the design, token by token, for one case."""
    total = 0.0
    for t in range(len(ref)):
        target = ref[t].clone()
        if t in anchors:
            c = anchors[t].confidence
            target = (1 - c) * target
            target[anchors[t].chosen_id] += c
        for v in range(ref.shape[1]):
            if target[v] > 0:
                total += float(target[v] * (target[v].log() - theta[t, v].log()))
    return total / len(ref)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([0.3, 0.9, 1.0]))
def test_the_loss_is_the_definition(seed: int, confidence: float) -> None:
    torch.manual_seed(seed)
    ref, theta = torch.softmax(torch.randn(6, 5) * 3, -1), torch.softmax(torch.randn(6, 5) * 3, -1)
    first, second = [anchor(1, 3, confidence)], [anchor(0, 0, 1.0), anchor(2, 4, confidence)]
    target = make_target(ref.log(), [3, 3], [first, second])
    expected = (naive_loss(ref[:3], theta[:3], {a.position: a for a in first}) + naive_loss(ref[3:], theta[3:], {a.position: a for a in second})) / 2
    assert float(lawf_loss(theta.log(), target)) == pytest.approx(expected, abs=1e-5)


def test_without_anchors_the_base_itself_is_the_minimum() -> None:
    ref = torch.log_softmax(torch.randn(4, 7), -1)
    target = make_target(ref, [4], [[]])
    assert float(lawf_loss(ref, target)) == pytest.approx(0, abs=1e-6)
    assert float(lawf_loss(torch.log_softmax(ref + torch.randn(4, 7), -1), target)) > 0
    assert float(token_kl(ref, ref).abs().max()) < 1e-6


def test_a_weak_preference_aims_at_its_own_probability() -> None:
    ref = torch.tensor([[0.1, 0.6, 0.3]]).log()
    target = make_target(ref, [1], [[anchor(0, 2, 0.5)]])
    assert float(target.anchor_goal[0]) == pytest.approx(0.5 + 0.5 * 0.3)
    mixture = torch.tensor([[0.05, 0.3, 0.65]]).log()  # c * onehot + (1 - c) * p_ref: others keep the base's proportions
    assert float(lawf_loss(mixture, target)) == pytest.approx(0, abs=1e-6)


def test_completion_logits_are_those_of_the_whole_rows() -> None:
    model = make_tiny_model()
    pairs = [([1, 60, 70], [80, 90, 2]), ([1, 61, 71, 81, 91], [101]), ([1], [33, 44, 55, 66, 2])]
    batch = make_batch(pairs, torch.device("cpu"))
    with torch.no_grad():
        got = completion_logits(model, batch)
        rows = [model(input_ids=torch.tensor([[*p, *c]])).logits[0, len(p) - 1:-1] for p, c in pairs]
    assert torch.allclose(got, torch.cat(rows), atol=1e-4)
    assert batch.targets.tolist() == [80, 90, 2, 101, 33, 44, 55, 66, 2]
    assert [len(part) for part in batch.split(got)] == [3, 1, 5]
