"""vLLM serves the peft folder as it is: what it does not take is refused, and the command to serve it is exact."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lawf_repl.errors import ExportError
from lawf_repl.export.card import Base
from lawf_repl.export.shell import ANY, asked, quote
from lawf_repl.records import Message

# What --max-lora-rank takes (MaxLoRARanks in vllm/config/lora.py); without 1, which older versions refuse.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def check_config(config: dict[str, Any]) -> None:
    """Raise ExportError, by name, for what vLLM refuses or silently ignores in a peft config: it reads r, lora_alpha and use_rslora alone."""
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_qalora", "alora_invocation_tokens"):
        if config.get(name):
            raise ExportError(f"vLLM does not serve an adapter with {name}: export it as merged, or train a plain LoRA")
    if config.get("bias", "none") != "none":
        raise ExportError("vLLM does not serve an adapter with biases: export it as merged, or train a plain LoRA")
    max_rank(int(config["r"]))


def max_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts as a limit and that is no smaller than `rank`."""
    found = next((allowed for allowed in RANKS if allowed >= rank), None)
    if found is None:
        raise ExportError(f"vLLM serves LoRA adapters up to rank {RANKS[-1]}, this one has {rank}: export it as merged")
    return found


def commands(out: Path, base: Base, config: dict[str, Any], messages: list[Message] | None) -> list[str]:
    """The command that serves it, and a request to try it with."""
    name = served_name(out)
    revision = f" --revision {quote(base.revision)}" if base.revision else ""
    body = {"model": name, "messages": messages if asked(messages)[1] != ANY else [{"role": "user", "content": ANY}], "temperature": 0}
    return [f"vllm serve {quote(base.name)}{revision} --enable-lora --max-lora-rank {max_rank(int(config['r']))} "
            f"--lora-modules {quote(f'{name}={out.absolute()}')}",
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d " + quote(json.dumps(body))]


def served_name(out: Path) -> str:
    """A name for requests, without what NAME=PATH or a URL would split."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.name.removesuffix(".adapter")).strip("-.") or "lawf"
