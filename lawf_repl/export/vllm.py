"""vLLM serves the peft folder as it is: what it does not take is refused, and the command to serve it is exact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lawf_repl.errors import ExportError
from lawf_repl.export.card import Base
from lawf_repl.export.commands import Example
from lawf_repl.export.shell import quote

# What --max-lora-rank takes (MaxLoRARanks in vllm/config/lora.py); without 1, which older versions refuse.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
HALVES = ("bfloat16", "float16")
# The names of tensors that its loader takes for linear layers (parse_fine_tuned_lora_name in vllm/lora/utils.py).
TENSOR = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")


def check_config(config: dict[str, Any]) -> None:
    """Raise ExportError, by name, for what vLLM refuses or silently ignores in a peft config: it reads r, lora_alpha and use_rslora alone."""
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_qalora", "alora_invocation_tokens"):
        if config.get(name):
            raise ExportError(f"vLLM does not serve an adapter with {name}: export it as merged, or train a plain LoRA")
    if config.get("bias", "none") != "none":
        raise ExportError("vLLM does not serve an adapter with biases: export it as merged, or train a plain LoRA")
    max_rank(int(config["r"]))


def check_tensors(names: Iterable[str]) -> None:
    """Raise ExportError for a tensor of adapter_model.safetensors that vLLM's loader refuses."""
    for name in names:
        if not TENSOR.fullmatch(name):
            raise ExportError(f"vLLM does not load the tensor {name}: it takes lora_A and lora_B of linear layers; export it as merged")


def max_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts as a limit and that is no smaller than `rank`."""
    found = next((allowed for allowed in RANKS if allowed >= rank), None)
    if found is None:
        raise ExportError(f"vLLM serves LoRA adapters up to rank {RANKS[-1]}, this one has {rank}: export it as merged")
    return found


def served_dtype(live: str, stored: str) -> str:
    """The number type that vLLM serves in, given the live model's and that of the base's files: its LoRA kernels take half precision only."""
    return next((dtype for dtype in (live, stored) if dtype in HALVES), HALVES[0])


def serve(model: str, revision: str | None, dtype: str, config: dict[str, Any], name: str, folder: Path, trusted: bool = False) -> list[str]:
    """What follows `vllm` to serve a base with the adapter of a folder under `name`."""
    return ["serve", model, *(["--revision", revision] if revision else []), "--dtype", dtype, *(["--trust-remote-code"] if trusted else []),
            "--enable-lora", "--max-lora-rank", str(max_rank(int(config["r"]))), "--lora-modules", f"{name}={folder.absolute()}"]


def commands(out: Path, base: Base, config: dict[str, Any], dtype: str, example: Example, trusted: bool = False) -> list[str]:
    """The command that serves it, and a request to try it with."""
    name = served_name(out)
    body: dict[str, Any] = {"model": name, "messages": example.talk, "temperature": 0}
    if example.arguments:
        body["chat_template_kwargs"] = example.arguments
    return [" ".join(["vllm", *map(quote, serve(base.name, base.revision, dtype, config, name, out, trusted))]),
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d " + quote(json.dumps(body, ensure_ascii=False))]


def served_name(out: Path) -> str:
    """A name for requests, without what NAME=PATH or a URL would split."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.name.removesuffix(".adapter")).strip("-.") or "lawf"
