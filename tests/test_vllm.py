"""vLLM is not run here: that its loader takes the folder, by the rules of that loader, and that what it would misread is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError
from lawf_repl.export import vllm
from lawf_repl.export.card import Base
from lawf_repl.export.commands import Example
from lawf_repl.export.peft import base_of, write_peft
from lawf_repl.export.source import read_source
from lawf_repl.learn.adapter import Adapter

ASKED = ({"role": "user", "content": "What is the capital of Australia?"},)


def vllm_loads(folder: Path, model: torch.nn.Module, limit: int) -> dict[str, float]:
    """What vLLM makes of a folder: the scale of each layer that it puts a LoRA on.

    After PEFTHelper (vllm/lora/peft_helper.py), parse_fine_tuned_lora_name (utils.py) and LoRAModel.from_local_checkpoint
    (lora_model.py), as of 2026: it needs three fields, refuses four, scales every layer alike, and takes the names of the
    tensors, not target_modules, for what is adapted; every linear layer of its model may be.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    rank, alpha, _ = (config[name] for name in ("r", "lora_alpha", "target_modules"))
    assert not config.get("modules_to_save") and not config.get("use_dora") and config.get("bias", "none") == "none" and rank <= limit
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    known = dict(model.named_parameters())
    sides: dict[str, set[str]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"] and parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"), name
        layer = ".".join(parts[2:-2])
        assert parts[-3] in linear, name
        weight = known[f"{layer}.weight"]
        assert tuple(tensor.shape) == ((rank, weight.shape[1]) if parts[-2] == "lora_A" else (weight.shape[0], rank))
        sides.setdefault(layer, set()).add(parts[-2])
    assert all(both == {"lora_A", "lora_B"} for both in sides.values())
    return dict.fromkeys(sides, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def test_the_loader_of_vllm_takes_every_layer_of_the_folder_at_its_own_scale(fixed_session: Path, demo_engine: Engine, tmp_path: Path) -> None:
    about = read_source(fixed_session)
    assert about.adapter is not None
    adapter = Adapter.load(demo_engine.model, about.adapter)
    try:
        config = write_peft(demo_engine, adapter, about, tmp_path / "out", base_of(demo_engine, "owner/base", None))
        scales = {path.removeprefix("base_model.model."): float(layer.scaling[layer.active_adapters[0]]) for path, layer in adapter.layers().items()}
    finally:
        adapter.remove()
    assert vllm_loads(tmp_path / "out", demo_engine.model, vllm.max_rank(config["r"])) == scales and len(scales) == 28
    vllm.check_config(config)
    vllm.check_tensors(load_file(tmp_path / "out" / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", [
    "base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias", "model.layers.0.mlp.up_proj.lora_A.weight",
    "base_model.model.score.modules_to_save.weight"])
def test_a_tensor_that_the_loader_refuses_is_refused_by_name(name: str) -> None:
    with pytest.raises(ExportError, match="vLLM does not load the tensor"):
        vllm.check_tensors(["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", name])


def test_vllm_gets_the_smallest_rank_that_it_accepts_and_nothing_that_it_would_misread() -> None:
    assert [vllm.max_rank(rank) for rank in (1, 4, 8, 9, 33, 300, 512)] == [8, 8, 8, 16, 64, 320, 512]
    with pytest.raises(ExportError, match="up to rank 512"):
        vllm.max_rank(513)
    for odd in ({"use_dora": True}, {"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 8}}, {"bias": "all"},
                {"modules_to_save": ["lm_head"]}):
        with pytest.raises(ExportError, match="vLLM does not serve"):
            vllm.check_config({"r": 4} | odd)


@pytest.mark.parametrize(("live", "stored", "served"), [
    ("float32", "bfloat16", "bfloat16"), ("float32", "float32", "bfloat16"), ("float32", "float16", "float16"), ("float16", "bfloat16", "float16")])
def test_the_number_type_is_one_that_the_lora_kernels_of_vllm_compute_in(live: str, stored: str, served: str) -> None:
    assert vllm.served_dtype(live, stored) == served


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_command_and_the_request_are_whole_and_exact(tmp_path: Path) -> None:
    base, example = Base("owner/base", "abc123", "owner/base", None, "float32"), Example(ASKED, {"enable_thinking": False})
    command, request = vllm.commands(tmp_path / "my fix", base, {"r": 12}, "bfloat16", example)
    assert command == (f"vllm serve owner/base --revision abc123 --dtype bfloat16 --enable-lora --max-lora-rank 16 "
                       f"--lora-modules 'my-fix={tmp_path / 'my fix'}'")
    words = subprocess.run(["bash", "-c", request.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True).stdout.splitlines()
    body: dict[str, Any] = {"model": "my-fix", "messages": list(ASKED), "temperature": 0}
    assert json.loads(words[-1]) == body | {"chat_template_kwargs": {"enable_thinking": False}}
    talk = ({"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "Sydney."}, {"role": "user", "content": "Sure?"})
    assert json.loads(vllm.commands(tmp_path / "x", base, {"r": 8}, "bfloat16", Example(talk))[1].partition("-d ")[2][1:-1])["messages"] == list(talk)
