"""Layers that are computed again: gradients stay what they are, and as few are as the room for what is kept asks for."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lawf_repl.engine import memory
from lawf_repl.learn import basis
from lawf_repl.learn import lower as learn_lower
from lawf_repl.learn.again import Again
from lawf_repl.learn.basis import Moments
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.head import replaced
from lawf_repl.learn.lower import Lower, room_of
from tests.architecture_zoo import ARCHITECTURES, MORE
from tests.test_last import ROWS, assert_whole, trained


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
    assert_whole(Lower(adapter), adapter, batch)


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

    with replaced([(layer, partial(counted, place, layer.forward)) for place, layer in enumerate(lower._above)]):
        lower.states(batch).sum().backward()
    return [seen[place] for place in range(len(lower._above))]


def six_layers(**more: Any) -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2,
                                        num_key_value_heads=1, head_dim=16, **more)).eval()


def long_batch(count: int) -> Any:
    return make_batch([((1, 6, 7), tuple(8 + place % 80 for place in range(count)))], torch.device("cpu"))


def whole_and_room(adapter: Any, batch: Any, monkeypatch: pytest.MonkeyPatch, share: float) -> int:
    """Bytes that are kept without a limit; from here on `share` of them may be."""
    monkeypatch.setattr(memory, "LEAST_BYTES", 0)
    monkeypatch.setattr(learn_lower, "KEPT", 1e4)
    free = Lower(adapter)
    assert kept_bytes(free, batch) < kept_bytes(free, batch), "what is not known yet is not kept"
    whole = kept_bytes(free, batch)
    monkeypatch.setattr(learn_lower, "KEPT", share * whole / memory.weight_bytes(adapter.base))
    return whole


def test_the_lowest_are_computed_again_as_few_as_there_must_be_and_from_the_first_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batch, times = trained(six_layers(), "all"), long_batch(52), []
    for share in (1.05, 0.74, 0.42, 0.0):
        whole = whole_and_room(adapter, batch, monkeypatch, share)
        lower = Lower(adapter)
        assert kept_bytes(lower, batch) <= 0.35 * whole
        later = runs(lower, batch)
        assert later == sorted(later, reverse=True) and later[-1] == 1
        assert kept_bytes(lower, batch) <= max(share, 0.35) * whole
        times.append(later)
        first = runs(Lower(adapter), batch)
        assert first == [3, 3, 3, 3, 3, 2], "once more, to see what each keeps"
    assert times == [[1] * 6, [2] * 2 + [1] * 4, [2] * 4 + [1] * 2, [2] * 5 + [1]]


def test_what_is_read_without_gradients_says_nothing_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batch = trained(six_layers(), "all"), long_batch(52)
    whole = whole_and_room(adapter, batch, monkeypatch, 0.4)
    lower = Lower(adapter)
    with torch.no_grad():
        lower.states(batch)
    assert not lower.again._rates
    kept_bytes(lower, batch)
    assert kept_bytes(lower, batch) <= 0.4 * whole


def test_layers_that_keep_differently_are_counted_one_by_one() -> None:
    again, wide = Again([None] * 4, 50.0), {0: 1.0, 1: 1.0, 2: 20.0, 3: 30.0}
    again._rates = wide
    assert [again.count(tokens, 0) for tokens in (1, 2, 3)] == [2, 3, 3]
    again._rates = {place: wide[3 - place] for place in range(4)}
    assert [again.count(tokens, 0) for tokens in (0, 1, 2, 4)] == [0, 1, 1, 2]
    assert again.count(1, 29) == 3, "what a layer is given is kept all the same"


def test_of_wider_texts_eager_attention_keeps_more_and_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(six_layers(attn_implementation="eager", max_position_embeddings=1024), "all")
    small, large = long_batch(9), long_batch(400)
    whole = whole_and_room(adapter, large, monkeypatch, 0.4)
    lower = Lower(adapter)
    for batch in (small, small, large, large):
        last = kept_bytes(lower, batch)
    assert last <= 0.42 * whole


def test_the_first_gradient_keeps_no_inputs_of_layers_that_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batch = trained(six_layers(), "all"), long_batch(52)
    whole_and_room(adapter, batch, monkeypatch, 0.0)
    moments = Moments(adapter, 60)
    with adapter.off(), torch.no_grad(), moments.reading(batch.mask):
        completion_logits(adapter.base, batch)
    lower, most = Lower(adapter), []
    lower.states(batch)  # what each keeps is known from here on
    alive: list[weakref.ref[torch.Tensor]] = []

    own = basis._Watched.forward

    class Noted(basis._Watched):
        """Notes the inputs that it is given."""

        @staticmethod
        def forward(ctx: Any, output: torch.Tensor, x: torch.Tensor, see: Any) -> torch.Tensor:
            alive.append(weakref.ref(x))
            return own(ctx, output, x, see)

    monkeypatch.setattr("lawf_repl.learn.basis._Watched", Noted)

    def loss() -> torch.Tensor:
        states = lower.states(batch)
        most.append(sum(one() is not None for one in alive))
        return states.square().sum()

    before = adapter.snapshot()
    basis.aim(adapter, moments, loss)
    assert len(alive) > 6 * 7 and most[0] <= 7, "those of the last layer alone"
    assert all(not torch.equal(value, before[name]) for name, value in adapter.snapshot().items() if "lora_A" in name)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_accelerator_has_no_limit_until_it_is_full(kind: str) -> None:
    adapter, batch = trained(six_layers(), "all"), long_batch(52)
    lower = Lower(adapter)
    if kind == "cuda":
        lower.again = Again(lower._above, room_of(torch.device("cuda"), adapter.base))
        lower.states(batch)
        assert not lower.again._rates, "nothing is run to find out"
        lower.again.every = True
        assert runs(lower, batch) == [2] * 6
    else:
        assert lower.again.room == memory.LEAST_BYTES == room_of(adapter.base.device, adapter.base)


def test_every_layer_is_computed_again_whatever_it_is_called_with() -> None:
    inner = torch.nn.Linear(3, 3)
    count = []

    class Layer(torch.nn.Module):
        """Its states come under a name of their own."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            count.append(1)
            out: torch.Tensor = inner(states)
            return out

    layer = Layer()
    again = Again([layer], math.inf)
    again.every = True
    with again.in_place(nullcontext):
        out = layer(states=torch.ones(1, 2, 3, requires_grad=True))
    out.sum().backward()
    assert len(count) == 2
