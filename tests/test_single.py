"""A layer on one token: the numbers of the model's own layer, with whatever hangs on it, and the same states in the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from lawf_repl.config import Settings
from lawf_repl.engine import native
from lawf_repl.engine.base import Engine
from lawf_repl.engine.layout import lay_out
from lawf_repl.engine.plain import PlainSteps
from lawf_repl.engine.products import of_vector, onednn_works
from lawf_repl.engine.roomy import RoomyLayer
from lawf_repl.engine.single import can_be_single, vector_norm
from lawf_repl.learn.adapter import Adapter
from tests.conftest import make_byte_tokenizer
from tests.test_plain import MODELS, make

CLOSE = 1e-5  # beside numbers around 1


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("laid", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
@torch.no_grad()
def test_each_layer_gives_what_the_models_own_gives(name: str, laid: bool, adapted: bool) -> None:
    model = make(name)
    if laid:
        lay_out(model)
    if adapted:
        adapter = Adapter.fresh(Engine(model, make_byte_tokenizer(), "tiny").model, Settings(), "tiny")
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
    steps = PlainSteps(model)
    assert len(steps._single) == len(model.model.layers)
    for layer, single in zip(model.model.layers, steps._single, strict=True):
        cache, own = RoomyLayer(), RoomyLayer()
        for place in range(5):
            x = torch.randn(32, generator=torch.Generator().manual_seed(place))
            angles = model.model.rotary_emb(x, torch.tensor([[place]]))
            expected = layer(x[None, None], position_embeddings=angles, past_key_values=Alone(own), use_cache=True)
            steps._make_angles(place + 1)
            found = single(x, cache, steps._cos[place], steps._sin[place])
            assert torch.allclose(found, expected[0, 0], atol=CLOSE * float(expected.abs().max()), rtol=CLOSE)
            for kept, right in ((cache.keys, own.keys), (cache.values, own.values)):
                assert torch.allclose(kept, right, atol=CLOSE * float(right.abs().max()))


class Alone:
    """A cache of one layer, whatever its number."""

    def __init__(self, layer: RoomyLayer) -> None:
        self.layer = layer

    def update(self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer.update(keys, values)


@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_what_it_is_given_stays_as_it_is() -> None:
    model = make("qwen3")
    lay_out(model)
    steps, cache, x = PlainSteps(model), RoomyLayer(), torch.randn(32)
    before = x.clone()
    steps._make_angles(1)
    steps._single[0](x, cache, steps._cos[0], steps._sin[0])
    assert torch.equal(x, before)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 3))
def test_a_token_that_is_appended_stands_where_an_update_would_put_it(chunks: list[int], singles: int) -> None:
    one, other = RoomyLayer(), RoomyLayer()
    drawn = torch.Generator().manual_seed(sum(chunks))
    for length in chunks:
        keys, values = (torch.randn(1, 2, length, 4, generator=drawn) for _ in range(2))
        one.update(keys, values)
        other.update(keys, values)
        for _ in range(singles):
            key, value = torch.randn(2, 4, generator=drawn), torch.randn(2, 4, generator=drawn)
            given_back = one.append(key, value)
            expected = other.update(key[None, :, None], value[None, :, None])
            assert all(torch.equal(*both) for both in zip(given_back, expected, strict=True))
            assert one.get_seq_length() == other.get_seq_length() and torch.equal(one.keys, other.keys)
    one.crop(-1)
    assert torch.equal(one.keys, other.keys[..., :-1, :])


def test_a_row_that_was_chosen_of_several_is_appended_to_like_any_other() -> None:
    cache = RoomyLayer()
    cache.update(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4))
    cache.batch_select_indices(torch.tensor([1]))
    before, key = cache.keys.clone(), torch.randn(2, 4)
    cache.append(key, key)
    assert torch.equal(cache.keys[..., :5, :], before) and torch.equal(cache.keys[0, :, 5], key)


@pytest.mark.skipif(not onednn_works(), reason="this build of torch has no oneDNN, or its product is another one")
@pytest.mark.parametrize("rows", [48, 577, 1])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_products_with_a_vector_are_right_however_the_matrix_lies(rows: int, columns: bool, compiled: bool,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "at_hand", lambda: False)
    weight, x = torch.randn(rows, 20), torch.randn(3, 20)[1]  # a vector that begins behind others
    weight = weight.t().contiguous().t() if columns else weight
    assert torch.allclose(of_vector(weight)(x), functional.linear(x, weight), atol=CLOSE)


def test_other_number_types_and_mixtures_are_not_for_it() -> None:
    model = make("llama")
    assert can_be_single(model)
    model.model.norm.to(torch.float64)
    assert not can_be_single(model) and not can_be_single(make("llama").to(torch.bfloat16)) and not PlainSteps(model)._single


@torch.no_grad()
def test_a_norm_of_one_vector_is_the_modules_own_also_of_zeros_without_an_epsilon() -> None:
    module = Qwen3RMSNorm(8, eps=0.0)
    module.weight.copy_(torch.arange(8.0))
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(vector_norm(module)(x), module(x), atol=1e-6)
    assert torch.equal(vector_norm(module)(torch.zeros(8)), torch.zeros(8))
