"""The last layer on the chosen positions alone gives what it gives on all, gradients too, on every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Batch, completion_logits, make_batch
from lawf_repl.learn.lower import Lower
from tests.architecture_zoo import ARCHITECTURES, MORE

ROWS = [((1, 6, 7, 11, 12), (8, 9, 10)), ((1, 6, 7, 8, 9, 13, 14), (10, 6)), ((1, 6), (7, 8, 9))]


def trained(model: Any, layers: str) -> Adapter:
    """An adapter that has learned something."""
    adapter = Adapter.fresh(model, Settings(layers=layers), "tiny")
    torch.manual_seed(1)
    adapter.restore({name: 0.1 * torch.randn_like(value) for name, value in adapter.snapshot().items()})
    return adapter


@pytest.mark.parametrize("layers", ["upper", "all"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_states_and_gradients_are_those_of_the_whole_layer(name: str, layers: str) -> None:
    adapter = trained((ARCHITECTURES | MORE)[name](), layers)
    batch = make_batch(ROWS, adapter.base.device)
    assert_whole(Lower(adapter), adapter, batch)


def assert_whole(lower: Lower, adapter: Adapter, batch: Batch) -> None:
    """States and gradients are those of the model's own forward, the second time too, from what was kept."""
    parameters = adapter.parameters()
    expected = completion_logits(adapter.base, batch)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * toward).sum(), parameters, allow_unused=True)
    for _ in range(2):
        found = lower.logits(batch)
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.detach().abs().max()))
        for own, other in zip(torch.autograd.grad((found * toward).sum(), parameters, allow_unused=True), gradients, strict=True):
            assert (own is None) == (other is None) or float((own if other is None else other).abs().max()) == 0
            assert own is None or other is None or torch.allclose(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def seen(lower: Lower, part: str, work: Callable[[], object]) -> list[tuple[int, ...]]:
    """Shapes of what a part of the last layer is given meanwhile."""
    shapes: list[tuple[int, ...]] = []
    module = next(module for name, module in lower._above[-1].named_modules() if name.endswith(part))
    handle = module.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    try:
        work()
    finally:
        handle.remove()
    return shapes


def test_it_is_narrowed_where_that_is_right_and_never_while_it_is_watched_or_computed_again() -> None:
    adapter = trained(ARCHITECTURES["qwen3"](), "upper")
    batch, narrow = make_batch(ROWS, adapter.base.device), (1, 8)
    lower = Lower(adapter)
    assert len(seen(lower, "down_proj", lambda: lower.states(batch))) >= 2, "tried before"
    for part in ("down_proj", "gate_proj"):
        assert {shape[:2] for shape in seen(lower, part, lambda: lower.states(batch))} == {narrow}
        assert {shape[:2] for shape in seen(lower, part, lambda: lower.states(batch, whole=True))} == {(3, 9)}
    assert {shape[:2] for shape in seen(lower, "k_proj", lambda: lower.states(batch))} == {(3, 9)}, "keys are needed everywhere"
    full = make_batch([((1,), (6, 7, 8, 9, 10, 11, 12, 13, 14, 15))], adapter.base.device)
    assert {shape[:2] for shape in seen(lower, "down_proj", lambda: lower.states(full))} == {(1, 11)}, "hardly a position would be saved"
    lower.again.every = True
    states = lower.states(batch)
    assert {shape[:2] for shape in seen(lower, "down_proj", lambda: states.sum().backward())} == {(3, 9)}


def test_a_layer_whose_parts_look_at_other_positions_is_left_whole() -> None:
    adapter = trained(ARCHITECTURES["qwen3"](), "upper")
    mlp = adapter.base.model.layers[-1].mlp
    own = mlp.forward
    mlp.forward = lambda given: own(given + given.mean(1, keepdim=True))
    batch = make_batch(ROWS, adapter.base.device)
    expected = completion_logits(adapter.base, batch)
    lower = Lower(adapter)
    assert torch.allclose(lower.logits(batch), expected, atol=1e-5 * float(expected.detach().abs().max()))
    assert not lower._last.parts and {shape[:2] for shape in seen(lower, "down_proj", lambda: lower.states(batch))} == {(3, 9)}
