"""oneDNN's products are torch's own up to rounding, values and gradients, however the matrices lie, and are only made where they may be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lawf_repl.config import Settings
from lawf_repl.engine import products
from lawf_repl.engine.cache import KeptCache
from lawf_repl.engine.layout import is_plain, lay_out
from lawf_repl.engine.products import FrozenLinear, by_onednn, onednn_works, product, take_over
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.fused import Fused

pytestmark = pytest.mark.skipif(not onednn_works(), reason="this build of torch has no oneDNN, or its product is another one")


def lying(weight: torch.Tensor, how: str) -> torch.Tensor:
    """The same matrix row by row, column by column, or as a part of a wider one, with gaps."""
    if how == "rows":
        return weight.contiguous()
    if how == "columns":
        return weight.t().contiguous().t()
    wide = torch.cat((weight.t(), weight.t()), 1)  # (I, 2 O)
    return wide[:, :len(weight)].t()


@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(("rows", "columns", "gaps")),
       st.booleans(), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_products_and_gradients_are_torchs(inputs: int, outputs: int, shape: list[int], how: str, biased: bool, turned: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = lying(torch.randn(outputs, inputs, generator=generator), how)
    bias = torch.randn(outputs, generator=generator) if biased else None
    x = torch.randn(*shape, inputs, generator=generator)
    if turned:  # not contiguous
        x = x.transpose(0, -2).contiguous().transpose(0, -2)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, right = product(found, weight, bias), functional.linear(expected, weight, bias)
    assert y.shape == right.shape and torch.allclose(y, right, atol=1e-4)
    y.sum().backward()  # slopes that are one number seen from everywhere
    right.sum().backward()
    assert found.grad is not None and expected.grad is not None and torch.allclose(found.grad, expected.grad, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(product(x, weight, bias), right, atol=1e-4)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, uncompiled: None) -> list[torch.Size]:
    """Shapes of the matrices that oneDNN is given, always with inputs that lie without gaps."""
    shapes: list[torch.Size] = []

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert x.is_contiguous()
        shapes.append(weight.shape)
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(products, "by_onednn", noted)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    return shapes


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")
@pytest.mark.parametrize(("rows", "threads", "parts"), [(576, 1, 2), (576, 2, 4), (580, 3, 10), (579, 1, 3), (577, 2, 0)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_matrix_is_read_in_parts_for_one_vector(made: list[torch.Size], monkeypatch: pytest.MonkeyPatch, rows: int, threads: int, parts: int,
                                                  biased: bool) -> None:
    assert products.parts_of(rows, threads) == parts  # 577 is prime
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(rows, 512, generator=generator), torch.randn(1, 1, 512, generator=generator)
    bias = torch.randn(rows, generator=generator) if biased else None
    found = product(x, weight, bias)
    assert found.shape == (1, 1, rows) and torch.allclose(found, functional.linear(x, weight, bias), atol=1e-4)
    assert bool(made) != bool(parts)
    assert torch.allclose(product(x, lying(weight, "columns"), bias), found, atol=1e-4) and made[-1] == (rows, 512)


def test_onednn_is_not_given_what_it_is_slow_or_wrong_for(made: list[torch.Size]) -> None:
    weight, x = torch.randn(8, 6), torch.randn(3, 6)
    product(x, weight, None)
    assert made.pop() == (8, 6) and not made
    product(x[:1], weight, None)                                    # one position
    product(x, lying(weight, "gaps"), None)
    product(x[:0], weight, None)
    product(x.bfloat16(), weight.bfloat16(), None)
    product(x, weight.requires_grad_(), None).sum().backward()      # something is learned
    assert weight.grad is not None
    bias = torch.zeros(8, requires_grad=True)
    product(x, weight.detach(), bias).sum().backward()
    assert bias.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x, weight.detach(), None).dtype == torch.bfloat16
    assert not made
    with torch.no_grad():
        product(x, weight, None)
        product(torch.randn(1, 512), torch.randn(577, 512), None)  # one position, and rows that cannot be cut into a few blocks
    assert made == [(8, 6), (577, 512)]


def test_inputs_and_slopes_with_gaps_are_closed_up(made: list[torch.Size]) -> None:
    weight = torch.randn(8, 6)
    turned = torch.randn(6, 3).t()
    with torch.no_grad():
        product(turned, weight, None)
    product(turned.requires_grad_(), weight, None).sum().backward()  # slopes that are one number seen from everywhere
    assert len(made) == 3


def test_on_a_processor_without_wide_vectors_matrices_are_torchs_own_and_a_vector_is_read_in_parts(
        made: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    weight, x = torch.randn(8, 64), torch.randn(3, 64, requires_grad=True)
    y = product(x, weight, None)
    assert torch.equal(y, functional.linear(x, weight)) and torch.equal(torch.autograd.grad(y.sum(), x)[0], weight.sum(0).expand(3, -1))
    with torch.no_grad():
        assert torch.equal(product(x, weight, None), functional.linear(x, weight))
        read: list[int] = []

        def noted(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
            read.append(parts)
            return functional.linear(x, weight)

        monkeypatch.setattr(products, "by_parts", noted)
        product(x[:1], weight, None)
    assert not made and bool(read) == torch.backends.mkl.is_available()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_a_large_wide_matrix_in_columns_is_read_in_parts_of_them(made: list[torch.Size], monkeypatch: pytest.MonkeyPatch, threads: int,
                                                                 biased: bool) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(products, "LARGE", 200 * 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    read: list[int] = []
    own = products.by_column_parts

    def noted(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
        read.append(parts)
        return own(x, weight, parts)

    monkeypatch.setattr(products, "by_column_parts", noted)
    generator = torch.Generator().manual_seed(threads)
    weight, x = torch.randn(200, 60, generator=generator), torch.randn(1, 1, 60, generator=generator)
    bias = torch.randn(200, generator=generator) if biased else None
    expected = functional.linear(x, weight, bias)
    found = product(x, lying(weight, "columns"), bias)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4) and read == [products.parts_of(60, threads)]
    assert torch.allclose(products.of_vector(lying(weight, "columns"))(x[0, 0]), functional.linear(x[0, 0], weight), atol=1e-4)
    for other in (lying(weight, "rows"), lying(weight, "gaps"), lying(weight[:100], "columns")):  # not in columns, or not large
        assert torch.allclose(product(x, other, None), functional.linear(x, other), atol=1e-4)
    several = torch.randn(3, 60, generator=generator)
    assert torch.equal(product(several, lying(weight, "columns"), bias), functional.linear(several, lying(weight, "columns"), bias))
    assert len(read) == 1 and not made


@pytest.mark.parametrize(("rows", "width", "faster", "columns"), [
    (4096, 1024, False, True), (1024, 2048, False, False), (3072, 192, False, False), (49152, 576, False, True), (49152, 576, True, False)])
@pytest.mark.usefixtures("uncompiled")
def test_which_matrices_lie_in_columns(rows: int, width: int, faster: bool, columns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: faster)
    assert products.in_columns(rows, width) == (columns and torch.backends.mkl.is_available())


@pytest.mark.parametrize(("capability", "faster"), [("AVX2", False), ("DEFAULT", False), ("AVX512", True), ("AVX512_VNNI", True)])
def test_which_library_is_faster_is_a_matter_of_the_processor(capability: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.onednn_is_faster() is faster


def test_a_second_gradient_is_refused_and_not_zero(made: list[torch.Size]) -> None:
    x = torch.randn(3, 6, requires_grad=True)
    slope, = torch.autograd.grad(product(x, torch.randn(8, 6), None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def tiny(hidden: int = 64, inner: int = 128, dtype: torch.dtype = torch.float32) -> Any:
    config = Qwen3Config(vocab_size=96, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval().to(dtype)


@pytest.mark.parametrize(("hidden", "inner"), [(64, 128), (256, 1024)])
def test_a_model_laid_out_computes_what_it_did(hidden: int, inner: int, made: list[torch.Size]) -> None:
    model = tiny(hidden, inner)
    same = copy.deepcopy(model)
    lay_out(same)
    assert all(type(module) is FrozenLinear for module in same.modules() if isinstance(module, nn.Linear))
    ids = torch.arange(20)[None]
    states = model.get_input_embeddings()(ids).detach()
    found, expected = (states.clone().requires_grad_() for _ in range(2))
    for one, given_states in ((same, found), (model, expected)):
        for parameter in one.parameters():
            parameter.requires_grad_(False)
        one(inputs_embeds=given_states, use_cache=False).logits.square().sum().backward()
    assert len(made) == 2 * (2 * 7 + 1)  # each product and its gradient
    assert found.grad is not None and expected.grad is not None and torch.allclose(found.grad, expected.grad, rtol=1e-3, atol=1e-4)


def test_only_plain_float32_layers_are_taken_over() -> None:
    class Other(nn.Linear):
        """Something of its own."""

    model = nn.Sequential(nn.Linear(4, 4), Other(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, device="meta"), nn.LayerNorm(4))
    take_over(model)
    assert [type(module) for module in model] == [FrozenLinear, Other, nn.Linear, nn.Linear, nn.LayerNorm]


def test_models_of_any_kind_are_taken_over() -> None:
    model = MistralForCausalLM(MistralConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                                             num_key_value_heads=1)).eval()
    assert not is_plain(model)
    lay_out(model)
    assert all(type(module) is FrozenLinear for module in model.modules() if isinstance(module, nn.Linear))


def test_a_step_of_a_plain_decoder_goes_by_onednn_too_projections_of_the_same_input_at_once(
        made: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    lay_out(model)
    cache = KeptCache(model)
    cache.feed([5, 6, 7], 1)
    made.clear()
    cache.feed([8], 1)
    assert not made  # MKL reads them in parts
    monkeypatch.setattr(products, "parts_of", lambda rows, threads: 0)
    cache = KeptCache(model)  # what a step is made of is decided once
    cache.feed([5, 6, 7], 1)
    made.clear()
    cache.feed([9], 1)
    assert [tuple(shape) for shape in made] == 2 * [(128, 64), (64, 64), (256, 64), (64, 128)] + [(96, 64)]


def test_layers_with_a_lora_go_by_onednn_forward_and_back(made: list[torch.Size]) -> None:
    model = tiny()
    lay_out(model)
    adapter = Adapter.fresh(model, Settings(layers="all"), "tiny")
    fused = Fused(adapter)
    assert {id(layer) for layer in fused.layers} == {id(layer) for layer in adapter.layers().values()} and len(fused.layers) == 2 * 7
    states = model.get_input_embeddings()(torch.arange(20)[None]).detach().requires_grad_()
    with fused.in_place():
        model(inputs_embeds=states, use_cache=False).logits.sum().backward()
    assert len(made) == 2 * (2 * 7 + 1)


@pytest.mark.parametrize("kind", ["wrong", "machine"])
def test_where_it_says_something_else_or_the_processor_is_another_it_is_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onednn_works.cache_clear()
    try:
        with monkeypatch.context() as patch:
            if kind == "wrong":
                patch.setattr(products, "by_onednn", lambda x, weight, bias: 1.01 * functional.linear(x, weight, bias))
            else:
                patch.setattr("lawf_repl.engine.products.platform.machine", lambda: "aarch64")
            assert not onednn_works()
    finally:
        onednn_works.cache_clear()


@pytest.mark.usefixtures("uncompiled")
def test_a_build_without_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    onednn_works.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(products, "by_onednn", missing)
            assert not onednn_works()
            model = tiny()
            lay_out(model)
            assert not any(isinstance(module, FrozenLinear) for module in model.modules())
            assert model.model.layers[0].mlp.up_proj.weight.stride(0) == 1  # columns, side by side
    finally:
        onednn_works.cache_clear()
    assert onednn_works()
