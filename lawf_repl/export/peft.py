"""A peft folder: adapter_config.json, adapter_model.safetensors, a model card and lawf.json."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import peft as peft_library
import torch
import transformers

from lawf_repl import __version__, store
from lawf_repl.engine.base import DEMO_MODEL, DEMO_NAME, Engine
from lawf_repl.errors import ExportError
from lawf_repl.export.card import Base, model_card
from lawf_repl.export.identity import base_fingerprint
from lawf_repl.export.source import ABOUT, SCHEMA, Source
from lawf_repl.learn.adapter import Adapter

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
EXTRA = ("modules_to_save", "trainable_token_indices", "lora_bias", "target_parameters", "layer_replication")
ALIEN = ("embed_tokens", "lm_head", "wte", "wpe")  # not linear layers of the decoder


def base_of(engine: Engine, named: str | None, revision: str | None) -> Base:
    """The base as an export names it: `named` where it was given, else the hub id or the folder that was loaded."""
    found = Path(engine.name).expanduser()
    folder = DEMO_MODEL if engine.name == DEMO_NAME else found if found.is_dir() else None
    commit = getattr(engine.model.config, "_commit_hash", None) or revision
    if named:
        return Base(named, revision if folder else commit, named, None, engine.dtype)
    if folder is not None:
        return Base(str(folder.resolve()), None, DEMO_NAME if engine.name == DEMO_NAME else folder.resolve().name,
                    folder.resolve(), engine.dtype)
    return Base(engine.name, commit, engine.name, None, engine.dtype)


def refuse_unfit(adapter: Adapter, config: dict[str, Any]) -> None:
    """Raise ExportError for an adapter that is more than LoRA matrices on linear layers, by the name of what it is."""
    more = [name for name in EXTRA if config.get(name)]
    if config.get("bias", "none") != "none":
        more.append(f"bias {config['bias']}")
    alien = [path for path in adapter.layers() if path.rpartition(".")[2] in ALIEN]
    if more or alien:
        raise ExportError(f"this adapter is more than a LoRA on linear layers ({', '.join(more or alien)}): other software would serve it wrongly or "
                          "not at all, so lawf exports none of it")


def write_peft(engine: Engine, adapter: Adapter, source: Source, folder: Path, base: Base) -> dict[str, Any]:
    """Write the folder; returns its adapter_config. The adapter is in the model when this is called."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter.save(folder)
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    refuse_unfit(adapter, config)
    config |= {"base_model_name_or_path": base.name, "revision": base.revision, "inference_mode": True, "task_type": "CAUSAL_LM"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod(0o644)  # a server runs as somebody else
    about = about_adapter(engine, source, base, config, folder)
    (folder / ABOUT).write_text(_compact(json.dumps(about, indent=1)) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(source, base, config, about["versions"]), encoding="utf-8")
    return config


def about_adapter(engine: Engine, source: Source, base: Base, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The object of schema lawf.adapter/1."""
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return {
        "schema": SCHEMA,
        "base": base_fingerprint(engine) | {"id": DEMO_NAME if base.label == DEMO_NAME else base.name, "revision": base.revision},
        "adapter": {"sha256": digest, "rank": config["r"], "alpha": config["lora_alpha"], "targets": config["target_modules"]},
        "cases": [store.to_json(known.case) | {"messages": list(known.messages), "base_ids": list(known.base_ids or ())} for known in source.known],
        "template_args": engine.template_args, "recipe": source.recipe,
        "scorecard": store.to_json(source.scorecard) if source.scorecard else None, "session": source.session,
        "versions": {"lawf": __version__, "python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "peft": peft_library.__version__},
    }


def _compact(text: str) -> str:
    """JSON with lists of numbers on one line: a text that people read has its token ids in it."""
    return re.sub(r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)
