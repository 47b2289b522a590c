"""The proof that needs a real llama.cpp: what lawf writes as GGUF answers there as it does here, logit by logit.

Skipped where llama-cpp-python is not installed; the log of a run is tests/logs/llama_cpp.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from lawf_repl.config import Settings
from lawf_repl.demo import world
from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError
from lawf_repl.export import gguf_names
from lawf_repl.export.gguf import GgufCheck, verify_gguf, write_base, write_lora
from lawf_repl.export.gguf_names import LAYOUTS
from lawf_repl.export.llama import llama_ids
from lawf_repl.learn.adapter import Adapter
from lawf_repl.session import Session
from tests.gguf_models import LINEAR, LLAMA3_ROPE, completion_logits, greedy, tiny, write_random_adapter
from tests.tokenizer_zoo import TEXT, ZOO, load_real_qwen2

gguf: Any = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

QUESTION, WANTED = "What is the capital of Australia?", "The capital of Australia is Canberra."
PROMPT = [1, 300, 211, 900, 17, 2, 210, 1, 64, 210]
PROBES = json.loads((Path(world.__file__).parent / "probes.json").read_text("utf-8"))


class Files(NamedTuple):
    """A base and a LoRA on disk, what they must answer, and the logits of transformers along the accepted answer, each (T, V)."""

    folder: Path
    prompt: tuple[int, ...]
    accepted: tuple[int, ...]
    base: tuple[int, ...]
    with_logits: torch.Tensor
    without_logits: torch.Tensor

    def check(self, lora: str = "lora.gguf", base: str = "base.gguf", reference: bool = True, tolerance: float = 1e-3) -> GgufCheck:
        logits = {"with_logits": self.with_logits, "without_logits": self.without_logits} if reference else {}
        return verify_gguf(self.folder / base, self.folder / lora, self.prompt, self.accepted, self.base, tolerance=tolerance, **logits)


@pytest.fixture(scope="module")
def demo(demo_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The demo model corrected as a user would, base and LoRA written as GGUF."""
    folder = tmp_path_factory.mktemp("demo")
    session = Session(demo_engine, Settings())
    list(session.ask(QUESTION))
    list(session.want(WANTED))
    case = session.accept()
    list(session.train())
    session.save_adapter(str(folder / "peft"))
    session.reset_adapter()
    write_base(demo_engine.model, demo_engine.tokenizer.hub, folder / "base.gguf")
    write_lora(demo_engine.model, folder / "peft", folder / "lora.gguf")
    prompt, accepted = case.prompt_ids, case.completion_ids
    without_logits = completion_logits(demo_engine.model, prompt, accepted)
    base = greedy(demo_engine.model, prompt, len(accepted) + 8)
    adapter = Adapter.load(demo_engine.model, folder / "peft")
    with_logits = completion_logits(demo_engine.model, prompt, accepted)
    adapter.remove()
    return Files(folder, prompt, accepted, tuple(base), with_logits, without_logits)


def test_the_corrected_demo_model_answers_in_llama_cpp_as_it_does_here(demo: Files, demo_engine: Engine) -> None:
    found = demo.check()
    print(f"\ndemo: {found.reason}\ndemo: {found.with_lora_text!r} with, {found.without_lora_text!r} without, effect {found.effect:.3g}, "
          f"largest difference {found.largest_difference:.3g} over {len(demo.accepted)} positions x {demo.with_logits.shape[1]} logits, twice")
    assert found.passed and found.largest_difference is not None and found.largest_difference <= 1e-3, found
    assert found.with_lora_ids == demo.accepted and found.without_lora_ids == demo.base and demo.accepted != demo.base
    assert found.with_lora_text == demo_engine.tokenizer.decode(demo.accepted) == WANTED + "<|im_end|>"
    assert found.without_lora_text == demo_engine.tokenizer.decode(demo.base)


CHAT = """
import sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], lora_path=sys.argv[2] if len(sys.argv) > 2 else None, n_ctx=256, n_threads=1, verbose=False)
asked = [{"role": "user", "content": "What is the capital of Australia?"}]
print(model.create_chat_completion(asked, temperature=0.0, max_tokens=32)["choices"][0]["message"]["content"])
"""


def test_a_chat_from_text_through_the_files_own_template_gives_both_answers(demo: Files, demo_engine: Engine) -> None:
    """As a user would serve it: nothing of lawf runs, the files' template and tokenizer make the prompt, the default cache is float16."""
    answers = []
    for names in (["base.gguf", "lora.gguf"], ["base.gguf"]):
        command = [sys.executable, "-c", CHAT, *(str(demo.folder / name) for name in names)]
        answers.append(subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip())
    print(f"\nchat: {answers[0]!r} with, {answers[1]!r} without")
    assert answers == [WANTED, demo_engine.tokenizer.decode(demo.base).removesuffix("<|im_end|>")]


SPOILED: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "layers reversed": lambda fields, tensors: _swap(tensors, lambda name: name.replace(f"blk.{_layer(name)}.", f"blk.{11 - _layer(name)}.")),
    "a layer missing": lambda fields, tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("blk.7.")],
    "gate for up": lambda fields, tensors: _swap(tensors, lambda name: name.replace("ffn_gate", "ffn_?").replace("ffn_up", "ffn_gate")
                                                 .replace("ffn_?", "ffn_up")),
    "no alpha": lambda fields, tensors: fields.pop("adapter.lora.alpha"),
    "zeros": lambda fields, tensors: tensors.update({name: tensor * 0 for name, tensor in tensors.items()}),
    "another architecture": lambda fields, tensors: fields.update({"general.architecture": "llama"}),
    "no type": lambda fields, tensors: fields.pop("general.type"),
    "half a pair": lambda fields, tensors: tensors.__delitem__("blk.4.attn_q.weight.lora_b"),
    "unknown tensor": lambda fields, tensors: tensors.update({"blk.9.attn_q.weight.lora_a": next(iter(tensors.values()))}),
}


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _swap(tensors: dict[str, Any], rename: Callable[[str], str]) -> None:
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    tensors.clear()
    tensors.update(renamed)


@pytest.mark.parametrize("how", SPOILED)
def test_a_lora_that_is_wrong_in_any_way_never_passes(how: str, demo: Files) -> None:
    reader = gguf.GGUFReader(demo.folder / "lora.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    SPOILED[how](fields, tensors)
    writer = gguf.GGUFWriter(demo.folder / "spoiled.gguf", fields.pop("general.architecture"))
    for key, value in fields.items():
        getattr(writer, {str: "add_string", float: "add_float32", int: "add_uint32"}[type(value)])(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = demo.check("spoiled.gguf")
    print(f"\n{how}: {found.reason}")
    assert not found.passed and found.verified


def test_files_that_are_none_never_pass(demo: Files) -> None:
    (demo.folder / "junk.gguf").write_bytes(b"GGUF junk")
    for lora, base in (("missing.gguf", "base.gguf"), ("junk.gguf", "base.gguf"), ("lora.gguf", "junk.gguf"), ("base.gguf", "base.gguf")):
        found = demo.check(lora, base)
        print(f"\n{lora} on {base}: {found.reason.replace(str(demo.folder), 'DIR')}")
        assert not found.passed and found.verified and "\n" not in found.reason


def files_of(model: Any, hub: PreTrainedTokenizerBase, folder: Path, **more: Any) -> Files:
    """A tiny random model with a random LoRA on all its linear layers, written, and what both answer in transformers."""
    tied = bool(model.config.tie_word_embeddings)
    write_random_adapter(model, folder / "peft", LINEAR if tied else [*LINEAR, "lm_head"], **more)
    write_base(model, hub, folder / "base.gguf")
    write_lora(model, folder / "peft", folder / "lora.gguf")
    base = greedy(model, PROMPT, 24)
    adapter = Adapter.load(model, folder / "peft")
    accepted = greedy(model, PROMPT, 24)
    with_logits = completion_logits(model, PROMPT, accepted)
    adapter.remove()
    return Files(folder, tuple(PROMPT), tuple(accepted), tuple(base), with_logits, completion_logits(model, PROMPT, accepted))


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{kind: (kind, {}, {}) for kind in sorted(LAYOUTS)},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}, {}),
    "qwen3, linear rope, theta 5e5": ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}, {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, {}),
    "mistral, rslora": ("mistral", {}, {"use_rslora": True}),
    "llama, patterns": ("llama", {}, {"rank_pattern": {"q_proj": 5, "down_proj": 2}, "alpha_pattern": {"k_proj": 7, "up_proj": 0.5}}),
    "llama, as many k as q": ("llama", {"num_key_value_heads": 4}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_models_with_grouped_heads_agree_logit_by_logit(variant: str, demo_engine: Engine, tmp_path: Path) -> None:
    kind, config, lora = VARIANTS[variant]
    files = files_of(tiny(kind, **config), demo_engine.tokenizer.hub, tmp_path, **lora)
    found = files.check()
    print(f"\n{variant}: effect {found.effect}, largest difference {found.largest_difference} over {len(files.accepted)} positions")
    assert found.passed, found.reason
    assert found.effect is not None and found.effect > 0.1


@pytest.mark.parametrize("where", ["the LoRA", "the base", "k as if it had q's heads"])
def test_a_wrong_order_of_rows_fails(where: str, demo_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong order loads, and may well give the right text: the logits tell."""
    stored = gguf_names.stored_rows
    if where == "the base":
        monkeypatch.setattr("lawf_repl.export.gguf_base.stored_rows", lambda tensor, *rest: tensor)
    elif where == "the LoRA":
        monkeypatch.setattr("lawf_repl.export.gguf.stored_rows", lambda tensor, *rest: tensor)
    else:
        monkeypatch.setattr("lawf_repl.export.gguf.stored_rows", lambda tensor, name, *rest: stored(tensor, name.replace("k_proj", "q_proj"), *rest))
    found = files_of(tiny("llama"), demo_engine.tokenizer.hub, tmp_path).check()
    print(f"\nrows wrong in {where}: {found.reason}")
    assert not found.passed and found.largest_difference is not None and found.largest_difference > 0.05


@pytest.mark.parametrize("dtype, most", [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_a_base_in_half_precision_loads_and_is_near(dtype: torch.dtype, most: float, demo: Files, demo_engine: Engine, tmp_path: Path) -> None:
    """Half of the arithmetic is rounded in llama.cpp too, so the logits are near, not equal; the answers are the same."""
    model = type(demo_engine.model)(demo_engine.model.config).to(dtype)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in demo_engine.model.state_dict().items()})
    write_base(model, demo_engine.tokenizer.hub, demo.folder / "half.gguf")
    found = demo.check(base="half.gguf", tolerance=most)
    print(f"\n{dtype}: largest difference {found.largest_difference}")
    assert found.passed, found.reason


# tokenizers


def split_otherwise(base_file: Path, hub: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """Texts that llama.cpp and transformers split into other ids."""
    found = llama_ids(base_file, texts)
    assert found is not None
    return [text for text, ids in zip(texts, found, strict=True) if ids != hub(text, add_special_tokens=False)["input_ids"]]


def test_llama_cpp_splits_the_whole_probe_set_as_the_demo_tokenizer_does(demo: Files, demo_engine: Engine) -> None:
    hub = demo_engine.tokenizer.hub
    prompts = [row["prompt"] for rows in PROBES.values() for row in rows]
    answers = [demo_engine.tokenizer.decode(row["answer_ids"]) for rows in PROBES.values() for row in rows]
    rendered = [str(hub.apply_chat_template([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False))
                for prompt, answer in zip(prompts, answers, strict=True)]
    texts = [*prompts, *answers, *rendered]
    print(f"\n{len(texts)} texts of {len(prompts)} probes: {len(split_otherwise(demo.folder / 'base.gguf', hub, texts))} split otherwise")
    assert len(prompts) == 280 and split_otherwise(demo.folder / "base.gguf", hub, texts) == []


ODD = [*TEXT.splitlines(), "12 345 6789 1,000.5 3.14", "a  b   c    d", "line\n\n\nline \n  x\r\n\ty", "It's we'LL YOU'RE don't I'D",
        "  lead and trail  ",
       "\t\t\n ", "x=1;y+=2//z", "«quote» — dash… 100% €5 №7", "豆包和豆", "日本語テキスト한국어", "👩‍👩‍👧 🏳️‍🌈 é", "ⅷ ² ٣ ४ a1b2", "", " ",
       "\u00a0nbsp\u3000wide", "<|im_start|>user\nhi<|im_end|>\n"]


def test_llama_cpp_splits_odd_texts_as_the_demo_tokenizer_does(demo: Files, demo_engine: Engine) -> None:
    texts = [unicodedata.normalize("NFC", text) for text in ODD]
    assert split_otherwise(demo.folder / "base.gguf", demo_engine.tokenizer.hub, texts) == []


@pytest.mark.parametrize("name", ["gpt2", "cleanup", "byte_bpe", "qwen2"])
def test_each_named_split_is_llama_cpps(name: str, tmp_path: Path) -> None:
    hub = load_real_qwen2() if name == "qwen2" else ZOO[name]()
    if hub is None:
        pytest.skip("the real tokenizer is not here")
    model = tiny("llama", vocab_size=len(hub) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    write_base(model, hub, tmp_path / "base.gguf")
    texts = [unicodedata.normalize("NFC", text) for text in [*ODD, *(row["prompt"] for rows in PROBES.values() for row in rows)]]
    assert split_otherwise(tmp_path / "base.gguf", hub, texts) == []


@pytest.mark.parametrize("name", ["gpt2", "cleanup"])
def test_a_wrong_known_split_is_noticed_and_an_unknown_one_does_not_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ZOO[name]()
    model = tiny("llama", vocab_size=len(hub), hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    monkeypatch.setattr("lawf_repl.export.gguf_tokens.split_name", lambda state: "qwen2")
    write_base(model, hub, tmp_path / "base.gguf")
    assert split_otherwise(tmp_path / "base.gguf", hub, ODD)
    monkeypatch.setattr("lawf_repl.export.gguf_tokens.split_name", lambda state: "no-such-split")
    write_base(model, hub, tmp_path / "base.gguf")
    with pytest.raises(ExportError, match="no-such-split"):
        llama_ids(tmp_path / "base.gguf", ["a"])
