"""The short way through plain decoders: the same numbers as the model's own forward, whatever is hung on it, and never where it would not be."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lawf_repl.config import Settings
from lawf_repl.engine import layout as layouts
from lawf_repl.engine import native, products
from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import KeptCache
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.engine.layout import is_plain, joint, lay_out
from lawf_repl.engine.plain import FEW, PlainSteps
from lawf_repl.engine.products import onednn_works
from lawf_repl.engine.roomy import RoomyLayer
from lawf_repl.learn.adapter import Adapter
from tests.conftest import make_byte_tokenizer

TEXT = [1, *range(40, 70)]
EXACT = 1e-4  # logits in float32 that spread over about 1; measured differences are about 1e-6
SIZES: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "eos_token_id": 2, "pad_token_id": 0,
                         "bos_token_id": None}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "llama with more biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"max_position_embeddings": 1024}, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}


def make(name: str) -> Any:
    torch.manual_seed(3)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do nothing would hide a mistake
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def full(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went the short way, call by call."""
    seen: list[int] = []

    class Counted(PlainSteps):
        def logits(self, ids: list[int], cache: Any, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(len(ids))
            return super().logits(ids, cache, keep)

    monkeypatch.setattr("lawf_repl.engine.cache.PlainSteps", Counted)
    return seen


needs_onednn = pytest.mark.skipif(not onednn_works(), reason="this build of torch has no oneDNN, or its product is another one")


@pytest.mark.parametrize("layout", ["compiled", "columns", pytest.param("rows", marks=needs_onednn), pytest.param("wide", marks=needs_onednn)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_short_way_gives_the_logits_of_a_full_forward(name: str, layout: str, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    if layout != "compiled":
        monkeypatch.setattr(native, "at_hand", lambda: False)
    if layout == "columns":
        monkeypatch.setattr("lawf_repl.engine.layout.onednn_works", lambda: False)
    if layout == "wide":  # as if all that is wide were large, on a processor where MKL makes the products
        monkeypatch.setattr(products, "LARGE", 0)
        monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    model = make(name)
    expected = full(model, TEXT)
    lay_out(model)
    assert (model.lm_head.weight.stride(0) == 1) == (layout == "columns" or (layout == "wide" and torch.backends.mkl.is_available()))
    cache = KeptCache(model)
    assert torch.allclose(cache.feed(TEXT[:5], 1), expected[4:5], atol=EXACT)
    assert torch.allclose(cache.feed(TEXT[5:12], 7), expected[5:12], atol=EXACT)
    for place in range(12, len(TEXT)):
        assert torch.allclose(cache.feed(TEXT[place:place + 1], 1), expected[place:place + 1], atol=EXACT)
    assert taken == [7, *[1] * (len(TEXT) - 12)]
    assert cache.keep_prefix(TEXT[:9]) == 9
    assert torch.allclose(cache.feed(TEXT[9:11], 2), expected[9:11], atol=EXACT)


def test_a_long_text_grows_out_of_the_room_that_there_was(taken: list[int]) -> None:
    model = make("qwen3")
    text = [3 + place % 250 for place in range(400)]
    cache = KeptCache(model)
    rows = [cache.feed(text[:10], 1), *(cache.feed([id_], 1) for id_ in text[10:])]
    assert torch.allclose(torch.cat(rows), full(model, text)[9:], atol=EXACT)
    assert len(taken) == 390 and cache.ids == text


@pytest.mark.usefixtures("uncompiled")
def test_without_onednn_weights_are_columns_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawf_repl.engine.layout.onednn_works", lambda: False)
    same = laid_out()
    assert same.lm_head.weight.stride() == (1, 259) and same.model.layers[0].mlp.down_proj.weight.stride() == (48, 1)
    assert sides(same) == (True, True)


@needs_onednn
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of torch has no MKL")
def test_with_mkl_what_is_large_and_wide_is_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(layouts, "ROWS", 7)
    same = laid_out()
    assert same.lm_head.weight.stride() == (1, 259) and same.model.layers[0].mlp.down_proj.weight.is_contiguous()
    assert same.model.layers[0].mlp.gate_proj.weight.stride(0) == 1 and sides(same) == (True, True)


@pytest.mark.skipif(not native.at_hand(), reason="nothing is compiled here")
def test_where_decoding_is_compiled_weights_are_rows_side_by_side_whatever_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawf_repl.engine.layout.onednn_works", lambda: False)
    monkeypatch.setattr(products, "LARGE", 0)
    same = laid_out()
    assert all(parameter.is_contiguous() for parameter in same.parameters()) and sides(same) == (True, True)


@needs_onednn
def test_with_onednn_weights_are_rows_side_by_side() -> None:
    same = laid_out()
    assert all(parameter.is_contiguous() for parameter in same.parameters()) and sides(same) == (True, True)


def laid_out() -> Any:
    """A model laid out, its weights what they were."""
    model, same = make("qwen3"), make("qwen3")
    lay_out(same)
    assert same.lm_head.weight is same.model.embed_tokens.weight
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    return same


def sides(model: Any) -> tuple[bool, bool]:
    """Whether the projections of attention, and those of the MLP, are one tensor each."""
    mlp, attention = model.model.layers[1].mlp, model.model.layers[1].self_attn
    first, second = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
    found = joint(first), joint(second)
    for whole, parts in zip(found, (first, second), strict=True):
        assert whole is None or torch.equal(whole, torch.cat([part.weight for part in parts]))
    assert joint((mlp.up_proj, mlp.gate_proj)) is None and joint((mlp.gate_proj, attention.q_proj)) is None
    return found[0] is not None, found[1] is not None


@needs_onednn
def test_rows_that_share_a_tensor_are_saved_one_by_one(tmp_path: Path) -> None:
    same = laid_out()
    same.save_pretrained(tmp_path)
    read = Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(read.state_dict().values(), same.state_dict().values(), strict=True))


def test_half_precision_is_not_laid_out() -> None:
    half = make("qwen3").to(torch.bfloat16)
    lay_out(half)
    assert half.lm_head.weight.is_contiguous() and type(half.lm_head) is nn.Linear


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped into memory is listed there")
def test_once_they_are_laid_out_nothing_holds_the_file_that_they_were_read_from(tmp_path: Path) -> None:
    make("qwen3").save_pretrained(tmp_path)
    read = Qwen3ForCausalLM.from_pretrained(tmp_path)
    lay_out(read)
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert torch.allclose(full(read, TEXT), full(make("qwen3"), TEXT), atol=EXACT)


@pytest.mark.parametrize("kind", ["hook", "early hook", "forward"])
def test_what_is_hung_on_a_module_is_never_passed_by(kind: str, taken: list[int]) -> None:
    model = make("llama")
    cache = KeptCache(model)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    assert taken == [1]
    norm = model.model.layers[1].mlp
    if kind == "forward":
        own = norm.forward
        norm.forward = lambda x: own(x) * 3
    else:
        handle = norm.register_forward_hook(lambda module, given, out: out * 3) if kind == "hook" else \
            norm.register_forward_pre_hook(lambda module, given: (given[0] * 3,))
    cache.drop()
    cache.feed(TEXT[:5], 1)
    assert torch.allclose(cache.feed(TEXT[5:6], 1), full(model, TEXT[:6])[-1:], atol=EXACT)
    assert taken == [1]
    if kind == "forward":
        del norm.forward
    else:
        handle.remove()
    cache.drop()
    cache.feed(TEXT[:5], 1)
    assert torch.allclose(cache.feed(TEXT[5:6], 1), full(model, TEXT[:6])[-1:], atol=EXACT)
    assert taken == [1, 1]


def test_an_adapter_that_comes_and_goes_is_followed_without_dropping_the_cache(taken: list[int]) -> None:
    engine = Engine(make("qwen3"), make_byte_tokenizer(), "tiny")
    cache = KeptCache(engine.model, engine.cache_kind)  # as that of the base, which stays while an adapter is off
    base = full(engine.model, TEXT)
    cache.feed(TEXT[:5], 1)
    cache.feed(TEXT[5:6], 1)
    adapter = Adapter.fresh(engine.model, Settings(), "tiny")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
    with adapter.off():
        assert torch.allclose(cache.feed(TEXT[6:7], 1), base[6:7], atol=EXACT)
    cache.drop()
    adapted = full(engine.model, TEXT)
    assert not torch.allclose(adapted, base, atol=0.1)
    rows = torch.cat([cache.feed(TEXT[:5], 1), *(cache.feed([id_], 1) for id_ in TEXT[5:9])])
    assert torch.allclose(rows, adapted[4:9], atol=EXACT)
    adapter.remove()
    cache.drop()
    rows = torch.cat([cache.feed(TEXT[:5], 1), *(cache.feed([id_], 1) for id_ in TEXT[5:9])])
    assert torch.allclose(rows, base[4:9], atol=EXACT)
    assert len(taken) > 9


def test_only_what_is_exactly_of_the_family_goes_the_short_way() -> None:
    class Other(LlamaForCausalLM):
        pass

    assert all(is_plain(make(name)) for name in MODELS)
    assert not is_plain(Other(LlamaConfig(**SIZES)))
    assert not is_plain(MistralForCausalLM(MistralConfig(**SIZES)))
    assert not is_plain(Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)))
    assert not is_plain(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})))
    eager = LlamaForCausalLM(LlamaConfig(**SIZES))
    eager.set_attn_implementation("eager")
    assert not is_plain(eager)


def test_a_chunk_of_many_goes_through_the_models_own_forward(taken: list[int]) -> None:
    model = make("llama")
    cache = KeptCache(model)
    cache.feed(TEXT[:4], 1)
    rows = cache.feed(TEXT[4:4 + FEW + 1], 3)
    assert taken == [] and torch.allclose(rows, full(model, TEXT)[FEW + 2:FEW + 5], atol=EXACT)


def test_what_was_written_is_judged_again_without_reading_anything(tiny_engine: Engine, taken: list[int]) -> None:
    decoder = Decoder(tiny_engine)
    tokens = list(decoder.generate(TEXT, (), Sampling(12)))
    ids = [*TEXT, *(token.id for token in tokens)]
    before, expected = len(taken), full(tiny_engine.model, ids)
    for place in (len(TEXT) + 3, len(TEXT) + 9, len(TEXT) + 1):
        found = decoder.alternatives(ids[:place], 3)
        assert [one.id for one in found] == expected[place - 1].topk(3).indices.tolist()
        assert [one.p for one in found] == pytest.approx(expected[place - 1].softmax(-1).topk(3).values.tolist(), abs=1e-5)
    assert len(taken) == before and decoder.cache.ids == ids[:-1]
    cut = len(TEXT) + 4
    rows = decoder.logits_at([*ids[:cut], 99, 98], 3)  # the first of the three is known, the others are read
    assert torch.allclose(rows, full(tiny_engine.model, [*ids[:cut], 99, 98])[-3:], atol=EXACT)
    assert taken[before:] == [2] and decoder.cache.ids == [*ids[:cut], 99, 98]
    assert torch.allclose(decoder.logits_at([*ids[:cut], 99], 2), full(tiny_engine.model, [*ids[:cut], 99])[-2:], atol=EXACT)
    assert taken[before:] == [2]
    decoder.drop_cache()
    assert decoder.cache.recall(ids, 1) is None


def test_a_layer_with_room_is_a_dynamic_layer() -> None:
    torch.manual_seed(0)
    layer = RoomyLayer()
    states = torch.randn(2, 3, 200, 8)
    for start, stop in ((0, 7), (7, 8), (8, 150), (150, 151)):
        keys, values = layer.update(states[:, :, start:stop], states[:, :, start:stop] + 1)
        assert torch.equal(keys, states[:, :, :stop]) and torch.equal(values, states[:, :, :stop] + 1)
    layer.crop(-100)
    assert layer.get_seq_length() == 51 and layer.get_mask_sizes(2) == (53, 0)
    keys, _ = layer.update(states[:, :, 190:], states[:, :, 190:])
    assert torch.equal(keys, torch.cat((states[:, :, :51], states[:, :, 190:]), 2))
    layer.crop(-61)
    assert layer.get_seq_length() == 0
    keys, _ = layer.update(states[:1, :, :4], states[:1, :, :4])  # another number of rows than before
    assert torch.equal(keys, states[:1, :, :4])
    layer.batch_repeat_interleave(2)
    keys, _ = layer.update(states[:, :, :1], states[:, :, :1])
    assert keys.shape == (2, 3, 5, 8)
    layer.reset()
    assert layer.get_seq_length() == 0


@torch.no_grad()
def test_in_half_precision_one_token_goes_the_short_way_too(taken: list[int]) -> None:
    model = make("qwen3").to(torch.bfloat16)
    cache = KeptCache(model)
    rows = torch.cat([cache.feed(TEXT[:5], 1), *(cache.feed([id_], 1) for id_ in TEXT[5:12])])
    exact = full(make("qwen3"), TEXT[:12])[4:]
    rounding = (full(model, TEXT[:12])[4:].float() - exact).abs().mean()
    assert (rows.float() - exact).abs().mean() < 2 * rounding and taken == [1] * 7
