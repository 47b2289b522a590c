"""The directions an adapter may use: of unit effect on what was read, and those that the loss asks for."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.basis import RIDGE, Moments, aim, directions, inverse, samples
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.objective import finite_logprobs
from tests.conftest import make_tiny_model

ROWS = [((1, 60, 70), (80, 90, 100)), ((1, 65, 75, 85, 95), (105, 62)), ((1, 61), (71, 81, 91, 101))]


def second_moments(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (count, 12) and their C (12, 12), ridge included."""
    samples = torch.randn(count, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 12)
    moments = samples.T @ samples / count
    return samples, moments + RIDGE * moments.trace() / 12 * torch.eye(12)


@pytest.mark.parametrize("count", [5, 40])
def test_the_inverse_is_the_dense_one_with_many_samples_and_with_few(count: int) -> None:
    samples, moments = second_moments(count)
    rows = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(inverse(samples)(rows), rows @ torch.linalg.inv(moments), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("tokens", [6, 30])
@pytest.mark.parametrize("twice", [False, True])
def test_directions_are_the_right_singular_vectors_of_the_whitened_gradient(count: int, tokens: int, twice: bool) -> None:
    samples, moments = second_moments(count)
    drawn = torch.Generator().manual_seed(2)
    x, delta = torch.randn(tokens, 12, generator=drawn), torch.randn(tokens, 7, generator=drawn)
    if twice:
        x[1] = x[0]  # the same token in the same place of two texts

    class Known:
        def solve(self, path: str, rows: torch.Tensor) -> torch.Tensor:
            return inverse(samples)(rows)

    values, vectors = torch.linalg.eigh(moments)
    root = (vectors * values.rsqrt()) @ vectors.T
    expected = torch.linalg.svd(delta.T @ x @ root).Vh[:3] @ root
    found = directions(x, delta, Known(), "any", 3, 0)  # type: ignore[arg-type]
    assert found is not None
    same = found @ moments @ expected.T  # (3, 3): each the same as one of the others, but for the sign
    assert torch.allclose(same.abs(), torch.eye(3), atol=1e-2)
    assert torch.allclose(found @ moments @ found.T, torch.eye(3), atol=1e-3)


def test_there_are_no_directions_without_a_gradient_and_zeros_where_there_are_fewer_than_asked_for() -> None:
    class Unseen:
        def solve(self, path: str, rows: torch.Tensor) -> torch.Tensor:
            return rows

    x, delta = torch.randn(4, 12), torch.zeros(4, 7)
    assert directions(x, delta, Unseen(), "any", 3, 0) is None  # type: ignore[arg-type]
    delta[1] = 1.0
    found = directions(x, delta, Unseen(), "any", 3, 0)  # type: ignore[arg-type]
    assert found is not None and torch.allclose(found[0].abs(), (x[1] / x[1].norm()).abs(), atol=1e-4) and not found[1:].any()
    assert directions(x * torch.nan, delta, Unseen(), "any", 3, 0) is None  # type: ignore[arg-type]
    assert inverse(x * torch.nan)(x).isnan().all() and inverse(x * torch.nan)(torch.randn(4, 12)).isnan().all()


def test_every_direction_has_the_same_effect_on_what_was_read_and_together_they_follow_the_gradient() -> None:
    model = make_tiny_model()
    adapter = Adapter.fresh(model, replace(Settings(), rank=2), "tiny")
    batch = make_batch(ROWS, model.device)
    moments = Moments(adapter, 20)
    with adapter.off(), torch.no_grad(), moments.reading(batch.mask):
        completion_logits(model, batch)
    adapter.parameters()
    path = next(path for path in adapter.layers() if path.endswith("2.mlp.up_proj"))
    seen: list[torch.Tensor] = []
    layer = adapter.layers()[path]
    handle = layer.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].detach()[batch.mask.bool()]))
    before = adapter.snapshot()
    aim(adapter, moments, lambda: -finite_logprobs(completion_logits(model, batch))[0, 77])
    handle.remove()
    after = adapter.snapshot()
    assert all(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    a = next(value for name, value in after.items() if name.startswith(path) and "lora_A" in name)
    effect = (seen[0] @ a.T / moments.size(path)).square().mean(0)
    assert torch.allclose(effect, effect[0].expand_as(effect), rtol=0.3) and 0.5 < float(effect[0]) <= 1.001  # the ridge takes a little
    # a step along B lowers the loss: the directions are those of the gradient
    parameters = adapter.outward()
    loss = -finite_logprobs(completion_logits(model, batch))[0, 77]
    gradients = torch.autograd.grad(loss, parameters)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
    norm = float(sum(gradient.square().sum() for gradient in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(0.01 * gradient / norm ** 0.5)
        assert float(-finite_logprobs(completion_logits(model, batch))[0, 77]) < float(loss)


def test_layers_that_share_an_input_share_its_moments() -> None:
    model = make_tiny_model()
    adapter = Adapter.fresh(model, Settings(), "tiny")
    moments = Moments(adapter, 20)
    batch = make_batch(ROWS, model.device)
    with adapter.off(), torch.no_grad(), moments.reading(batch.mask):
        completion_logits(model, batch)
    assert len(moments._inputs) == 2 * 4 and len(moments._source) == 2 * 7  # q k v and gate up see the same
    assert all(len(torch.cat(rows)) == int(batch.mask.sum()) for rows in moments._inputs.values())  # padding is nobody's input


def test_what_the_layers_are_given_is_not_kept_until_a_batch_is_read() -> None:
    model = make_tiny_model()
    adapter = Adapter.fresh(model, Settings(), "tiny")
    batch = make_batch(ROWS, model.device)
    given: list[weakref.ref[torch.Tensor]] = []
    for layer in adapter.layers().values():
        layer.register_forward_pre_hook(lambda module, inputs: given.append(weakref.ref(inputs[0])))
    with adapter.off(), torch.no_grad(), Moments(adapter, 20).reading(batch.mask):
        completion_logits(model, batch)
        assert len(given) == 2 * 7 and sum(one() is not None for one in given) <= 1  # the latest, in case that the next layer shares it


def test_the_samples_of_all_layers_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model()
    adapter = Adapter.fresh(model, Settings(), "tiny")
    batch = make_batch(ROWS * 40, model.device)
    tokens = int(batch.mask.sum())

    def kept() -> tuple[int, int]:
        moments = Moments(adapter, tokens)
        with adapter.off(), torch.no_grad(), moments.reading(batch.mask):
            completion_logits(model, batch)
        rows = [torch.cat(rows) for rows in moments._inputs.values()]
        return sum(one.nbytes for one in rows), len(rows[0])

    whole, _ = kept()
    monkeypatch.setattr("lawf_repl.learn.basis.SHARE", 0.0)
    monkeypatch.setattr("lawf_repl.engine.memory.LEAST_BYTES", whole // 4)
    some, rows = kept()
    assert 0.5 < some / (whole // 4) < 1.6 and rows > 1  # drawn token by token, so not to the byte
    monkeypatch.setattr("lawf_repl.engine.memory.LEAST_BYTES", 0)
    assert samples(adapter) == 1
