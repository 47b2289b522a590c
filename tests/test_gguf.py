"""GGUF files read back: names, shapes, metadata and values, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError, ModelError
from lawf_repl.export import gguf_names
from lawf_repl.export.gguf import write_base, write_lora
from lawf_repl.export.gguf_names import LAYOUTS
from lawf_repl.export.gguf_tokens import split_name
from lawf_repl.learn.adapter import Adapter
from tests.architecture_zoo import ARCHITECTURES
from tests.gguf_models import LINEAR, LLAMA3_ROPE, tiny, write_random_adapter
from tests.tokenizer_zoo import ZOO

gguf: Any = pytest.importorskip("gguf")

OURS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and tensors of a GGUF file."""
    reader = gguf.GGUFReader(file)
    return ({key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")},
            {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors})


def rows_of_llama_cpp(path: str, kind: str, count: int) -> list[int]:
    """Which row of transformers' layer stands at each row of llama.cpp's: rotated pairs are neighbours there, half a head apart here."""
    heads = {"q_proj": 4, "k_proj": 2}.get(path.rpartition(".")[2])
    if heads is None or kind not in ("llama", "mistral"):
        return list(range(count))
    width = count // heads
    return [head * width + half * (width // 2) + pair for head in range(heads) for pair in range(width // 2) for half in (0, 1)]


SCALES: dict[str, dict[str, Any]] = {
    "plain": {}, "rslora": {"use_rslora": True}, "patterns": {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 2},
                                                             "alpha_pattern": {"k_proj": 7, "up_proj": 0.5}}}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_what_the_file_adds_to_each_layer_is_what_peft_adds(kind: str, scales: str, tmp_path: Path) -> None:
    model = tiny(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    added = write_random_adapter(model, tmp_path / "peft", [*LINEAR, "lm_head"], **SCALES[scales])
    write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    fields, tensors = read(tmp_path / "lora.gguf")
    assert (fields["general.architecture"], fields["general.type"], fields["adapter.type"]) == (LAYOUTS[kind].name, "adapter", "lora")
    assert fields["adapter.lora.alpha"] == 12.0
    field = gguf.GGUFReader(tmp_path / "lora.gguf").fields["adapter.lora.alpha"]
    assert field.types == [gguf.GGUFValueType.FLOAT32], "any other type aborts llama.cpp"
    assert len(added) == 7 * 3 + 1
    expected = set()
    for path, delta in added.items():
        name = "output"
        if path != "lm_head":
            _, _, layer, inner = path.split(".", 3)
            name = f"blk.{layer}.{OURS[inner]}"
        a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
        expected |= {f"{name}.weight.lora_a", f"{name}.weight.lora_b"}
        assert a.shape == (b.shape[1], delta.shape[1]) and b.shape[0] == delta.shape[0]
        assert a.dtype == b.dtype == torch.float32
        there = fields["adapter.lora.alpha"] / b.shape[1] * b @ a
        torch.testing.assert_close(there, delta[rows_of_llama_cpp(path, kind, delta.shape[0])], rtol=1e-5, atol=1e-7)
    assert set(tensors) == expected
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the base is left as it was"


def test_a_plain_adapter_keeps_its_matrices_bit_for_bit(tmp_path: Path) -> None:
    model = tiny("qwen3")
    write_random_adapter(model, tmp_path / "peft", ["up_proj"], r=3, lora_alpha=7)
    write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    saved, tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors"), read(tmp_path / "lora.gguf")[1]
    for layer in range(3):
        for side in "AB":
            assert torch.equal(tensors[f"blk.{layer}.ffn_up.weight.lora_{side.lower()}"],
                               saved[f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_{side}.weight"])


@pytest.mark.parametrize("change, said", [
    ({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias"), ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"something_of_next_year": 1}, "something_of_next_year"), ({"init_lora_weights": "pissa"}, "pissa"), ({"init_lora_weights": "olora"}, "olora"),
    ({"peft_type": "IA3"}, "no LoRA"), ({"lora_alpha": 0}, "lora_alpha 0"), ({"alora_invocation_tokens": [4]}, "alora_invocation_tokens"),
])
def test_what_is_more_than_plain_matrices_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = tiny("qwen3")
    write_random_adapter(model, tmp_path / "peft", ["up_proj"])
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ExportError, match=said):
        write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["peft"]


def test_lora_on_tied_heads_and_embeddings_is_refused_and_the_base_comes_back(tmp_path: Path) -> None:
    for number, (targets, tied, said) in enumerate([(["lm_head"], True, "lm_head"), (["embed_tokens"], False, "embed_tokens, which is no linear")]):
        model = tiny("llama", tie_word_embeddings=tied)
        write_random_adapter(model, tmp_path / str(number), targets)
        with pytest.raises(ExportError, match=said):
            write_lora(model, tmp_path / str(number), tmp_path / "lora.gguf")
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules()) and not (tmp_path / "lora.gguf").exists()


def test_an_adapter_without_effect_or_of_another_model_or_on_an_adapted_base_is_refused(tmp_path: Path) -> None:
    model = tiny("qwen3")
    write_random_adapter(model, tmp_path / "peft", ["up_proj"])
    with pytest.raises(ModelError, match="does not fit"):
        write_lora(tiny("qwen3", hidden_size=64), tmp_path / "peft", tmp_path / "lora.gguf")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, file)
    with pytest.raises(ExportError, match="not finite"):
        write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    save_file({name: tensor if "lora_A" in name else torch.zeros_like(tensor) for name, tensor in weights.items()}, file)
    with pytest.raises(ExportError, match="changes nothing"):
        write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    Adapter.load(model, tmp_path / "peft")
    with pytest.raises(ExportError, match="already carries an adapter"):
        write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "phi3", "granite", "qwen3_moe"])
def test_other_architectures_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[kind]()
    with pytest.raises(ExportError, match=type(model).__name__):
        write_lora(model, tmp_path, tmp_path / "x")
    with pytest.raises(ExportError, match=type(model).__name__):
        write_base(model, None, tmp_path / "x")


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_a_base_read_back_is_the_base(kind: str, tmp_path: Path, demo_engine: Engine) -> None:
    model = tiny(kind, tie_word_embeddings=kind == "qwen2", **({"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}))
    write_base(model, demo_engine.tokenizer.hub, tmp_path / "base.gguf")
    fields, tensors = read(tmp_path / "base.gguf")
    names = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight", "output_norm.weight": "model.norm.weight"}
    inner = {**{ours: theirs for theirs, ours in OURS.items()}, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    state, seen = model.state_dict(), set()
    for name, tensor in tensors.items():
        if name.startswith("blk."):
            _, layer, own, end = name.split(".")
            source = f"model.layers.{layer}.{inner[own]}.{end}"
        else:
            source = names[name]
        seen.add(source)
        whole = state[source]
        assert torch.equal(tensor, whole[rows_of_llama_cpp(source.rpartition(".")[0], kind, whole.shape[0])]), name
    assert seen == set(state) - ({"lm_head.weight"} if kind == "qwen2" else set())
    arch = LAYOUTS[kind].name
    width = 12 if kind == "qwen2" else 16
    expected = {"block_count": 3, "context_length": 256, "embedding_length": 48, "feed_forward_length": 96, "attention.head_count": 4,
                "attention.head_count_kv": 2, "attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width,
                "rope.freq_base": 10000.0}
    assert {key: fields[f"{arch}.{key}"] for key in expected} == expected
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(model.config.rms_norm_eps)


def test_the_tokenizer_read_back_is_the_demo_tokenizer(tmp_path: Path, demo_engine: Engine) -> None:
    hub = demo_engine.tokenizer.hub
    write_base(tiny("qwen3"), hub, tmp_path / "base.gguf")  # eight more embeddings than tokens
    fields, _ = read(tmp_path / "base.gguf")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert {text: id_ for id_, text in enumerate(tokens[:3072])} == hub.get_vocab() and tokens[3072:] == [f"[PAD{id_}]" for id_ in range(3072, 3080)]
    assert types == [3] * 3 + [1] * 3069 + [5] * 8
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in json.loads(hub.backend_tokenizer.to_str())["model"]["merges"]]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.add_bos_token"]) == (2, 0, False)
    assert fields["tokenizer.chat_template"] == hub.chat_template


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_except_in_norms(dtype: torch.dtype, tmp_path: Path, demo_engine: Engine) -> None:
    model = tiny("llama")
    torch.nn.Module.to(model, dtype)
    write_base(model, demo_engine.tokenizer.hub, tmp_path / "base.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors}
    kind = {torch.float16: gguf.GGMLQuantizationType.F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}[dtype]
    assert {tensor.tensor_type for name, tensor in tensors.items() if "norm" not in name} == {kind}
    assert {tensor.tensor_type for name, tensor in tensors.items() if "norm" in name} == {gguf.GGMLQuantizationType.F32}
    values = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, kind)
    assert torch.equal(torch.from_numpy(np.array(values)), model.state_dict()["model.layers.1.mlp.up_proj.weight"].float())


@pytest.mark.parametrize("kind, more, said", [
    ("mistral", {"sliding_window": 64}, "window is 64"), ("llama", {"hidden_act": "gelu"}, "found gelu"),
    ("qwen3", {"attention_bias": True}, "biases"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "window is 64"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "type yarn"),
    ("qwen3", {"rope_parameters": LLAMA3_ROPE}, "type llama3"),
])
def test_a_base_that_llama_cpp_would_compute_otherwise_is_refused(kind: str, more: dict[str, Any], said: str, tmp_path: Path,
                                                                  demo_engine: Engine) -> None:
    with pytest.raises(ExportError, match=said):
        write_base(tiny(kind, **more), demo_engine.tokenizer.hub, tmp_path / "base.gguf")
    assert list(tmp_path.iterdir()) == []


def test_splits_get_the_name_under_which_llama_cpp_has_them_or_none() -> None:
    named = {}
    for name in sorted(ZOO):
        backend = getattr(ZOO[name](), "backend_tokenizer", None)
        try:
            named[name] = split_name(json.loads(backend.to_str())) if backend is not None else "none"
        except ExportError:
            named[name] = "refused"
    assert {name: split for name, split in named.items() if split != "refused"} == {"gpt2": "gpt-2", "cleanup": "llama-bpe", "byte_bpe": "qwen2"}


@pytest.mark.parametrize("spoil", [
    lambda state: state["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+|\s+"),
    lambda state: state["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    lambda state: state["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
    lambda state: state.update(normalizer={"type": "Lowercase"}), lambda state: state["model"].update(ignore_merges=True),
    lambda state: state["model"].update(byte_fallback=True), lambda state: state["added_tokens"][1].update(lstrip=True),
    lambda state: state.update(pre_tokenizer=None), lambda state: state["model"].update(type="Unigram"),
])
def test_a_tokenizer_that_differs_in_anything_has_no_name(spoil: Callable[[dict[str, Any]], None], demo_engine: Engine) -> None:
    state = json.loads(demo_engine.tokenizer.hub.backend_tokenizer.to_str())
    assert split_name(state) == "qwen2"
    spoil(state)
    with pytest.raises(ExportError, match="tokenizer cannot be written"):
        split_name(state)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "base.gguf"
    out.write_bytes(b"before")

    def full(self: Any, **rest: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(ExportError, match="No space left"):
        write_base(tiny("qwen2"), demo_engine.tokenizer.hub, out)
    with pytest.raises(ExportError, match="cannot be written"):
        write_base(tiny("qwen2"), demo_engine.tokenizer.hub, tmp_path / "nowhere" / "base.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["base.gguf"] and out.read_bytes() == b"before"


def test_without_the_gguf_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match="pip install"):
        gguf_names.library()
    with pytest.raises(ExportError, match="pip install"):
        write_lora(tiny("llama"), tmp_path, tmp_path / "x")
