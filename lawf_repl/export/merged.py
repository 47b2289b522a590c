"""The base with the adapter merged into its weights: a whole model that needs no peft, in the number type of the base's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError, first_line
from lawf_repl.export.card import Base, model_card
from lawf_repl.export.source import Source
from lawf_repl.learn.adapter import Adapter

SHARD = "5GB"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def refuse_quantized(engine: Engine) -> None:
    """Raise ExportError for a base whose weights are quantized."""
    quantized = getattr(engine.model.config, "quantization_config", None)
    if quantized is None and not getattr(engine.model, "is_quantized", False):
        return
    method = getattr(quantized, "quant_method", None) or (quantized.get("quant_method") if isinstance(quantized, dict) else None) or "quantized"
    raise ExportError(f"the weights of {engine.name} are quantized ({getattr(method, 'value', method)!s}): merged into them, the correction would be "
                      "rounded away with them; load the base without --quantize, or export as peft")


def stored_dtype(load: dict[str, Any], engine: Engine) -> str:
    """The number type of the base's own files: its config's, or where that names none the one that was loaded."""
    config = AutoConfig.from_pretrained(**load)
    found = str(getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None) or engine.dtype)
    found = found.removeprefix("torch.")
    return found if found in TYPES else engine.dtype


@torch.no_grad()
def merged_weights(adapter: Adapter, dtype: str) -> dict[str, torch.Tensor]:
    """The model's state by its own names, each LoRA added in float32 and rounded once; what the loader keeps in float32 stays so."""
    layers = {path: layer for path, layer in adapter.base.named_modules() if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")}
    kept = {str(name) for which in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict") for name in getattr(adapter.base, which, None) or ()}
    done: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}  # tied weights are one tensor under two names, and must stay one
    out: dict[str, torch.Tensor] = {}
    for name, weight in adapter.base.state_dict().items():
        if ".lora_" in name:
            continue
        path, _, own = name.rpartition(".base_layer.")
        layer = layers.get(path) if own == "weight" else None
        plain = f"{path}.{own}" if path else name
        key = (weight.data_ptr(), tuple(weight.shape))
        if layer is None and key in done and weight.numel():
            out[plain] = done[key]
            continue
        whole = weight.float() + sum(layer.get_delta_weight(one).float() for one in layer.active_adapters) if layer is not None else weight
        if whole.is_floating_point():
            whole = whole.to(torch.float32 if kept & set(plain.split(".")) else TYPES[dtype])
        out[plain] = done[key] = whole.cpu().contiguous()
    return out


def write_merged(engine: Engine, adapter: Adapter, source: Source, folder: Path, base: Base, dtype: str,
                 load: dict[str, Any], shard: str = SHARD) -> None:
    """Write model, tokenizer, template, generation config and a card. The adapter is taken out of the live model.

    `load` is what from_pretrained takes for the base (pretrained_model_name_or_path, revision, trust_remote_code). Raises ExportError
    where transformers refuses.
    """
    refuse_quantized(engine)
    weights = merged_weights(adapter, dtype)
    adapter.remove()
    try:
        engine.model.save_pretrained(str(folder), state_dict=weights, max_shard_size=shard)
        _set_dtype(folder / "config.json", dtype)
        AutoTokenizer.from_pretrained(**load).save_pretrained(str(folder))
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ExportError(f"transformers does not save this model: {first_line(error)}") from error
    (folder / "README.md").write_text(model_card(source, base, None, {}, "merged"), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def _set_dtype(path: Path, dtype: str) -> None:
    """transformers writes the number type of the live model, which need not be that of the files."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = dtype
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
