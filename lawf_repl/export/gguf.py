"""A LoRA as GGUF, as llama.cpp loads it beside a base in GGUF; with the base's writer and the check, the whole of `--format gguf`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from lawf_repl.errors import ExportError
from lawf_repl.export.gguf_base import write_base
from lawf_repl.export.gguf_names import TensorNames, layout_of, library, stored_rows, writing
from lawf_repl.export.llama import GgufCheck, verify_gguf
from lawf_repl.learn.adapter import Adapter

__all__ = ["GgufCheck", "verify_gguf", "write_base", "write_lora"]

# Fields of an adapter's config that do not change what its matrices mean, or whose meaning is folded into them below.
HARMLESS = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r", "target_modules",
    "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"})
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # others (pissa, olora, ...) train against a base that they change


@dataclass(frozen=True)
class Part:
    """The LoRA of one linear layer: its effect is scale * B A."""

    path: str            # transformers' name of the layer
    a: torch.Tensor      # float32 (r, in)
    b: torch.Tensor      # float32 (out, r)
    scale: float


def write_lora(model: Any, adapter_folder: Path, out_file: Path) -> None:
    """Write the LoRA of a peft folder as a GGUF adapter for `model`, the base without an adapter, which is left as it was.

    llama.cpp multiplies B A by alpha / rank, the rank being B's. The file's alpha is the config's; what a layer's own scale is
    more or less than that (rslora, alpha and rank patterns) is folded into its B, so that plain matrices stay bit for bit.
    Raises ExportError for an architecture that llama.cpp has no names for, for anything that is more than LoRA matrices on
    linear layers, and for an adapter without any effect; ModelError for one that does not fit the model.
    """
    gguf = library()
    layout = layout_of(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ExportError("the base already carries an adapter: expected it without one; take it out first")
    alpha = plain_alpha(Path(adapter_folder))
    names = TensorNames(model, layout)
    adapter = Adapter.load(model, adapter_folder)
    try:
        parts = list(_parts(adapter, bool(model.config.tie_word_embeddings)))
    finally:
        adapter.remove()
    if not any(bool(part.a.any()) and bool(part.b.any()) for part in parts):
        raise ExportError(f"the adapter at {adapter_folder} changes nothing: all its matrices are zero; train it first")
    with writing(Path(out_file), layout) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)  # as uint32 it aborts the process that loads it
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for part in parts:
            name, rank = names[part.path + ".weight"], part.a.shape[0]
            factor = part.scale * rank / alpha
            b = stored_rows(part.b, part.path, model, layout) * factor
            writer.add_tensor(name + ".lora_a", part.a.contiguous().numpy())
            writer.add_tensor(name + ".lora_b", b.contiguous().numpy())


def plain_alpha(folder: Path) -> float:
    """lora_alpha of the adapter in a folder. Raises ExportError where it is more than plain LoRA matrices."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"no adapter at {folder}: expected a folder with a readable adapter_config.json") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ExportError(f"the adapter at {folder} is no LoRA: llama.cpp loads nothing else")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ExportError(f"the adapter at {folder} was started with init_lora_weights={start!r}, which changes the base: expected a plain LoRA; "
                          "convert it with peft's path_initial_model_for_weight_conversion first")
    plain = LoraConfig().to_dict()
    odd = sorted(key for key, value in config.items() if value and key not in HARMLESS | {"init_lora_weights"} and value != plain.get(key))
    if odd:
        raise ExportError(f"the adapter at {folder} is more than llama.cpp's LoRA can hold: expected plain matrices on linear layers, found "
                          f"{', '.join(odd)} in adapter_config.json; export it as peft or merged")
    alpha = config.get("lora_alpha", plain["lora_alpha"])
    if not isinstance(alpha, int | float) or not alpha:
        raise ExportError(f"the adapter at {folder} has lora_alpha {alpha!r}: expected a number other than zero")
    return float(alpha)


def _parts(adapter: Adapter, tied: bool) -> Iterator[Part]:
    for path, layer in adapter.layers().items():
        name, path = layer.active_adapters[0], path.removeprefix("base_model.model.")
        if name not in layer.lora_A or not isinstance(layer.lora_A[name], torch.nn.Linear):
            raise ExportError(f"the adapter has a LoRA on {path}, which is no linear layer: llama.cpp's LoRA takes linear layers only")
        if tied and path.rpartition(".")[2] == "lm_head":
            raise ExportError("the adapter has a LoRA on lm_head, which this model shares with its embeddings: llama.cpp cannot tell them apart")
        a, b = (matrix[name].weight.detach().float().cpu().clone() for matrix in (layer.lora_A, layer.lora_B))
        if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
            raise ExportError(f"the adapter's matrices of {path} hold numbers that are not finite: train it again")
        yield Part(path, a, b, float(layer.scaling[name]))
