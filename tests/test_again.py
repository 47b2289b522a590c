"""Layers that are computed again: gradients stay what they are, and as few are as the room for what is kept asks for."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lawf_repl.engine import memory
from lawf_repl.learn import lower as learn_lower
from lawf_repl.learn.again import Again
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.head import replaced
from lawf_repl.learn.lower import Lower
from tests.architecture_zoo import ARCHITECTURES, MORE
from tests.test_last import ROWS, trained


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be kept for a backward pass."""
    monkeypatch.setattr(learn_lower, "KEPT", 0.0)
    monkeypatch.setattr(memory, "LEAST_BYTES", 0)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_without_room_states_and_gradients_are_the_same(name: str) -> None:
    adapter = trained((ARCHITECTURES | MORE)[name](), "all")
    batch = make_batch(ROWS, adapter.base.device)
    lower, parameters = Lower(adapter), adapter.parameters()
    expected = completion_logits(adapter.base, batch)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * toward).sum(), parameters, allow_unused=True)
    for _ in range(2):
        found = lower.logits(batch)
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.detach().abs().max()))
        for own, other in zip(torch.autograd.grad((found * toward).sum(), parameters, allow_unused=True), gradients, strict=True):
            assert (own is None) == (other is None) or float((own if other is None else other).abs().max()) == 0
            assert own is None or other is None or torch.allclose(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def kept_bytes(lower: Lower, batch: Any) -> int:
    """What a forward keeps, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in lower._model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        lower.states(batch)
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def runs(lower: Lower, batch: Any) -> list[int]:
    """How often each layer is run for one gradient, lowest first."""
    seen: Counter[int] = Counter()

    def counted(place: int, own: Any, *given: Any, **more: Any) -> Any:
        seen[place] += torch.is_grad_enabled()
        return own(*given, **more)

    with ExitStack() as stack:
        for place, layer in enumerate(lower._above):
            stack.enter_context(replaced(layer, partial(counted, place, layer.forward)))
        lower.states(batch).sum().backward()
    return [seen[place] for place in range(len(lower._above))]


def test_the_lowest_are_computed_again_as_few_as_there_must_be_and_from_the_first_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2,
                                         num_key_value_heads=1, head_dim=16)).eval()
    adapter = trained(model, "all")
    batch = make_batch([((1, 6, 7), tuple(range(8, 60)))], model.device)
    monkeypatch.setattr(memory, "LEAST_BYTES", 0)
    monkeypatch.setattr(learn_lower, "KEPT", 100.0)
    whole = kept_bytes(Lower(adapter), batch)
    times = []
    for share in (1.0, 0.7, 0.4, 0.0):
        monkeypatch.setattr(learn_lower, "KEPT", share * 1.05 * whole / memory.weight_bytes(model))
        lower = Lower(adapter)
        first, later = runs(lower, batch), runs(lower, batch)
        assert first == [1 + later[0], *later[1:]], "the lowest once more, to see what a layer keeps"
        assert later == sorted(later, reverse=True) and later[-1] == 1
        assert kept_bytes(lower, batch) <= max(share * 1.05, 0.35) * whole
        times.append(sum(later))
    assert times[0] == 6 < times[1] < times[2] < times[3] == 11


def test_an_accelerator_has_no_limit_until_it_is_full() -> None:
    again = Again([None] * 4, math.inf)
    assert again.count(1000, 10) == 0
    again.every = True
    assert again.count(1, 1) == 4
