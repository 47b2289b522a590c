"""What is compiled says what torch says, with any number of threads and either instruction set; and is left out where it cannot be used."""

from __future__ import annotations

import ctypes
import gc
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from lawf_repl.config import Settings
from lawf_repl.engine import native
from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import KeptCache
from lawf_repl.engine.layout import lay_out
from lawf_repl.engine.native_layers import NativeLayers
from lawf_repl.engine.plain import ONE_BY_ONE, PlainSteps
from lawf_repl.engine.products import product
from lawf_repl.engine.roomy import RoomyLayer
from lawf_repl.engine.statistics import statistics_of
from lawf_repl.errors import OutOfMemory
from lawf_repl.learn.adapter import Adapter
from tests.conftest import make_byte_tokenizer
from tests.test_plain import EXACT, MODELS, TEXT, full, make
from tests.test_single import Alone

pytestmark = pytest.mark.skipif(not native.at_hand(), reason="nothing is compiled here")
CLOSE = 1e-5  # beside numbers around 1
COMPILED = sorted(name for name in MODELS if name != "llama with biases")  # whose activation is another


@pytest.fixture(params=["best", "plain"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The instructions that this processor has, and those that every one has."""
    native.library().lawf_choose(int(request.param == "plain"))
    yield
    native.library().lawf_choose(0)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.usefixtures("instructions")
def test_products_are_torchs_and_the_same_with_every_number_of_threads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, width = (int(torch.randint(1, most, (), generator=generator)) for most in (700, 90 if seed % 2 else 1500))
    weight, x = torch.randn(rows, width, generator=generator), torch.randn(1, 1, width, generator=generator)
    bias = torch.randn(rows, generator=generator) if seed % 3 else None
    expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        found.append(native.product(x, weight, bias))
        assert found[-1].shape == (1, 1, rows)
        assert torch.equal(native.product_of_vector(weight)(x[0, 0]), native.product(x[0, 0], weight, None))
    assert torch.allclose(found[0].double(), expected, atol=CLOSE * width ** 0.5)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_product_of_one_vector_is_the_compiled_one_wherever_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []
    own = native.product

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        asked.append(weight.shape)
        return own(x, weight, bias)

    monkeypatch.setattr(native, "product", noted)
    weight, x = torch.randn(8, 6), torch.randn(3, 6)
    with torch.no_grad():
        product(x[:1], weight, None)
        product(x[1], weight, torch.randn(8))
        assert asked == [(8, 6), (8, 6)]
        for other in (weight.t().contiguous().t(), torch.randn(8, 12)[:, ::2]):  # columns, or gaps
            assert torch.allclose(product(x[:1], other, None), functional.linear(x[:1], other), atol=CLOSE)
        product(x, weight, None)
        product(x[:1].bfloat16(), weight.bfloat16(), None)
    product(x[:1].clone().requires_grad_(), weight, None).sum().backward()
    product(x[:1], weight.requires_grad_(), None).sum().backward()
    assert weight.grad is not None and len(asked) == 2


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", COMPILED)
@torch.no_grad()
def test_layers_give_what_the_models_own_give(name: str, adapted: bool, threads: int) -> None:
    model = make(name)
    lay_out(model)
    if adapted:
        adapted_with_noise(model)
    steps = PlainSteps(model)
    for layer in model.model.layers:
        compiled = NativeLayers([layer])
        assert compiled.ready()
        cache, own = RoomyLayer(), RoomyLayer()
        for place in range(70):  # the room grows once
            x = torch.randn(32, generator=torch.Generator().manual_seed(place))
            before = x.clone()
            angles = model.model.rotary_emb(x, torch.tensor([[place]]))
            expected = layer(x[None, None], position_embeddings=angles, past_key_values=Alone(own), use_cache=True)
            steps._make_angles(place + 1)
            found = compiled(x, [cache], steps._cos[place], steps._sin[place])
            assert torch.equal(x, before)
            assert torch.allclose(found, expected[0, 0], atol=CLOSE * float(expected.abs().max()), rtol=CLOSE)
        for kept, right in ((cache.keys, own.keys), (cache.values, own.values)):
            assert kept.shape == right.shape and torch.allclose(kept, right, atol=CLOSE * float(right.abs().max()))


@pytest.mark.usefixtures("instructions")
@torch.no_grad()
def test_many_heads_and_widths_that_are_no_multiple_of_anything(threads: int) -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=301, hidden_size=75, intermediate_size=133, num_hidden_layers=2, num_attention_heads=24,
                                         num_key_value_heads=8, head_dim=22, initializer_range=0.2)).eval()
    expected = full(model, TEXT)
    lay_out(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:3], 1)
    rows = torch.cat([cache.feed([id_], 1) for id_ in TEXT[3:]])
    assert cache._steps is not None and cache._steps._compiled is not None
    assert torch.allclose(rows, expected[3:], atol=EXACT)


def adapted_with_noise(model: Any) -> Adapter:
    """The model with a LoRA that changes everything."""
    adapter = Adapter.fresh(Engine(model, make_byte_tokenizer(), "tiny").model, Settings(), "tiny")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
    return adapter


@pytest.mark.parametrize("name", sorted(MODELS))
@torch.no_grad()
def test_what_is_not_as_it_is_computed_here_goes_another_way(name: str) -> None:
    model = make(name)
    with pytest.raises(ValueError, match=r"way|activation"):  # not laid out
        NativeLayers(model.model.layers)
    assert PlainSteps(model)._compiled is None
    lay_out(model)
    assert (PlainSteps(model)._compiled is not None) == (name in COMPILED)
    model.model.layers[1].self_attn.o_proj.weight.data = model.model.layers[1].self_attn.o_proj.weight.t().contiguous().t()
    assert PlainSteps(model)._compiled is None


@pytest.mark.parametrize("state", ["off", "scaled", "merged", "another", "training", "turned"])
@torch.no_grad()
def test_a_lora_is_taken_as_it_is_now(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3")
    lay_out(model)
    base = full(model, TEXT)
    adapter = adapted_with_noise(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    steps = cache._steps
    assert steps is not None and steps._compiled is not None and steps._compiled.ready()
    layer = model.model.layers[-1].self_attn.k_proj
    if state == "off":
        adapter.switch(False)
    elif state == "scaled":
        layer.scaling["default"] *= 3
    elif state == "merged":
        layer.merge()
    elif state == "another":
        layer._active_adapter = "nobody"
    elif state == "training":
        layer.train()
    else:
        layer.lora_A["default"].weight.data = layer.lora_A["default"].weight.t().contiguous().t()
    expected = full(model, TEXT)
    assert state != "off" or torch.allclose(expected, base, atol=EXACT)
    cache.drop()
    cache.feed(TEXT[:5], 1)
    rows = torch.cat([cache.feed([id_], 1) for id_ in TEXT[5:12]])
    assert torch.allclose(rows, expected[5:12], atol=EXACT)
    assert cache._steps is steps and steps._compiled.ready() == (state in ("off", "scaled"))


@torch.no_grad()
def test_a_lora_of_another_kind_goes_another_way() -> None:
    from peft import LoraConfig, get_peft_model

    for more in ({"use_dora": True}, {"lora_bias": True}):
        model = make("llama with biases") if "lora_bias" in more else make("llama")
        lay_out(model)
        names = ["o_proj"]
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=names, **more)).eval()  # type: ignore[arg-type]
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        assert PlainSteps(model)._compiled is None
        cache = KeptCache(model)
        cache.feed(TEXT[:5], 1)
        assert torch.allclose(cache.feed(TEXT[5:6], 1), full(model, TEXT)[5:6], atol=EXACT)


@given(st.integers(1, 200), st.integers(1, 12), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=150)
def test_statistics_are_torchs(size: int, count: int, equals: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(size, generator=generator) * (8 if seed % 2 else 1)
    row = row.round() if equals else row
    row[torch.rand(size, generator=generator) < 0.1] = -math.inf
    if bool(row.isinf().all()):
        row[0] = 0.0
    for least in (0, 1):
        native.library().lawf_choose(least)
        try:
            found = statistics_of(row, count)
        finally:
            native.library().lawf_choose(0)
        logprobs = torch.log_softmax(row.double(), -1)
        order = sorted(range(size), key=lambda place: (-float(row[place]), place))[:count]
        assert found.ids == order and found.most_probable == int(row.argmax())
        assert found.logprobs == pytest.approx([float(logprobs[place]) for place in order], abs=1e-5)
        probabilities = logprobs.exp()
        assert found.entropy == pytest.approx(-float((probabilities * logprobs.clamp_min(-1e9)).sum()), abs=1e-5)


@pytest.mark.parametrize("row", [[1.0, math.nan, 2.0] * 20, [math.inf, 1.0], [-math.inf] * 30, [0.0] * 40 + [math.nan]])
def test_statistics_of_what_is_no_distribution_are_torchs_own(row: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor(row)
    assert native.statistics(logits, 2) is None
    found = statistics_of(logits, 2)
    monkeypatch.setattr(native, "at_hand", lambda: False)
    expected = statistics_of(logits, 2)
    assert found.ids == expected.ids and str(found.logprobs) == str(expected.logprobs) and str(found.entropy) == str(expected.entropy)


@pytest.mark.parametrize("row", [[0.0] * 50 + [95.0], [300.0, 0.0, -300.0] * 9, [3e38, -3e38, 0.0], [1e5 + place for place in range(40)]])
@pytest.mark.usefixtures("instructions")
def test_statistics_of_logits_far_apart_or_far_out(row: list[float]) -> None:
    logits = torch.tensor(row)
    found, logprobs = statistics_of(logits, 3), torch.log_softmax(logits.double(), -1)
    assert found.logprobs == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-5, rel=1e-5)
    assert found.entropy == pytest.approx(-float((logprobs.exp() * logprobs.clamp_min(-1e9)).sum()), abs=1e-5)


@pytest.mark.usefixtures("instructions")
@torch.no_grad()
def test_scores_and_gates_far_apart() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(60)
        layer.mlp.gate_proj.weight.mul_(200)
    expected = full(model, TEXT)
    lay_out(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:3], 1)
    rows = torch.cat([cache.feed([id_], 1) for id_ in TEXT[3:]])
    assert torch.allclose(rows, expected[3:], atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["weight", "norm", "bias", "parameter", "lora", "last norm", "head"])
@torch.no_grad()
def test_numbers_that_are_replaced_are_read_where_they_are_now(kind: str) -> None:
    model = make("llama with more biases")
    lay_out(model)
    adapted_with_noise(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    layer = model.model.layers[-1]
    if kind == "weight":
        layer.self_attn.o_proj.base_layer.weight.data = layer.self_attn.o_proj.base_layer.weight * 3
    elif kind == "norm":
        layer.input_layernorm.weight.data = layer.input_layernorm.weight * 3
    elif kind == "bias":
        layer.self_attn.v_proj.base_layer.bias.data = layer.self_attn.v_proj.base_layer.bias * 3
    elif kind == "last norm":
        model.model.norm.weight.data = model.model.norm.weight * 3
    elif kind == "head":
        model.lm_head.weight = nn.Parameter(model.lm_head.weight * 3)
    elif kind == "parameter":
        layer.post_attention_layernorm.weight = nn.Parameter(layer.post_attention_layernorm.weight * 3)
    else:
        layer.mlp.up_proj.lora_B["default"].weight = nn.Parameter(layer.mlp.up_proj.lora_B["default"].weight * 3)
    cache.drop()
    cache.feed(TEXT[:5], 1)
    assert torch.allclose(cache.feed(TEXT[5:6], 1), full(model, TEXT)[5:6], atol=EXACT)
    assert cache._steps is not None and cache._steps._compiled is not None


@torch.no_grad()
def test_a_cache_that_is_dropped_is_gone() -> None:
    model = make("qwen3")
    lay_out(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    held = [weakref.ref(layer._whole[0]) for layer in cache._cache.layers]
    cache.drop()
    gc.collect()
    assert all(one() is None for one in held)


@torch.no_grad()
def test_no_memory_for_a_token_is_an_error_of_ours_and_nothing_is_known_then(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3")
    lay_out(model)
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    assert cache._steps is not None and cache._steps._compiled is not None
    monkeypatch.setattr(cache._steps._compiled, "_call", lambda *given: 0)
    with pytest.raises(OutOfMemory):
        cache.feed(TEXT[6:7], 1)
    assert cache.ids == []


@torch.no_grad()
def test_what_it_cannot_multiply_is_torchs() -> None:
    weight, x = torch.randn(8, 6), torch.randn(1, 6)
    for bias in (torch.zeros(1).expand(8), torch.randn(16)[::2]):
        assert torch.allclose(product(x, weight, bias), functional.linear(x, weight, bias), atol=CLOSE)
    with pytest.raises(RuntimeError):
        product(x[:, :3], weight, None)
    assert torch.allclose(product(x, weight, torch.ones(8, dtype=torch.bfloat16)), product(x, weight, torch.ones(8)), atol=CLOSE)


@pytest.mark.skipif(not Path(native.__file__).with_name("native.c").exists(), reason="the source is not here")
def test_what_is_compiled_is_what_is_written() -> None:
    compiled = Path(native.library()._name)
    if compiled.parent == Path(native.__file__).parent:
        assert compiled.stat().st_mtime >= compiled.with_name("native.c").stat().st_mtime, "install lawf again: native.c was changed"


def test_a_large_vocabulary_has_the_same_statistics_as_in_double_precision() -> None:
    row = torch.randn(151_936, generator=torch.Generator().manual_seed(0)) * 3
    found, logprobs = statistics_of(row, 8), torch.log_softmax(row.double(), -1)
    assert found.entropy == pytest.approx(-float((logprobs.exp() * logprobs).sum()), abs=1e-4)
    assert found.logprobs == pytest.approx(logprobs.topk(8).values.tolist(), abs=1e-5)


@torch.no_grad()
def test_what_is_not_a_number_stays_so() -> None:
    model = make("qwen3")
    lay_out(model)
    model.model.embed_tokens.weight[9, 3] = math.nan
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    assert bool(cache.feed([9], 1).isnan().all())


@pytest.mark.parametrize("kind", ["none", "not a library", "another version", "without its functions"])
def test_a_library_that_cannot_be_used_is_not(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if kind == "not a library":
        (tmp_path / "broken.so").write_bytes(b"nothing")
        origin = str(tmp_path / "broken.so")
    elif kind == "without its functions":
        origin = ctypes.__file__
        monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace())
    else:
        origin = native.library()._name
    native.library.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", lambda name: None if kind == "none" else SimpleNamespace(origin=origin))
            patch.setattr(native, "INTERFACE", 0 if kind == "another version" else native.INTERFACE)
            assert native.library() is None and not native.at_hand() and "not compiled" in native.what_is_at_hand()
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    assert native.at_hand() and native.what_is_at_hand().startswith("compiled (")


def test_without_the_threads_of_torch_it_is_used_by_one_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert native.at_hand()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not native.at_hand() and "threads" in native.what_is_at_hand()


@pytest.mark.parametrize("count", [1, 2, ONE_BY_ONE, ONE_BY_ONE + 1])
@torch.no_grad()
def test_a_few_tokens_give_the_logits_that_they_give_together(count: int) -> None:
    model = make("qwen3")
    expected = full(model, TEXT)
    lay_out(model)
    for keep in {1, count}:
        cache = KeptCache(model)
        cache.feed(TEXT[:5], 1)
        found = cache.feed(TEXT[5:5 + count], keep)
        assert found.shape == (keep, 259) and torch.allclose(found, expected[5 + count - keep:5 + count], atol=EXACT)
        known = cache.recall(TEXT[:5 + count], count)
        assert known is not None and torch.allclose(known, expected[5:5 + count], atol=EXACT)
        assert torch.allclose(cache.feed(TEXT[5 + count:6 + count], 1), expected[5 + count:6 + count], atol=EXACT)
