"""The base's answers to general prompts, kept on disk: they are the same for every session with one model.

One file a model, named by what decides its answers: weights, config, tokenizer, number type. Prompts are known by their
ids, so a chat template or a system message needs no name of its own. A file that cannot be read, or is not ours, counts as
none; one that cannot be written is done without. Nothing here is ever needed: it saves time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from lawf_repl.engine.base import Engine

Ids = tuple[int, ...]
SCHEMA = 1
SAMPLES = 256  # numbers of every weight that its fingerprint is made from: training changes nearly all of them


class KeptAnswers:
    """Greedy answers of one model, at most `max_tokens` long, by prompt ids."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine, self._max_tokens = engine, max_tokens

    @property
    def path(self) -> Path:
        """Where they are; finding out reads a little of every weight."""
        if not hasattr(self, "_path"):
            mark = self._engine.fingerprint()
            parts = [SCHEMA, self._max_tokens, mark["config_sha256"], mark["tokenizer_sha256"], mark["dtype"], weights_sha256(self._engine.model)]
            self._path = user_cache_path("lawf", appauthor=False) / "answers" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"
        return self._path

    def read(self) -> dict[Ids, Ids]:
        """Prompt ids to answer ids; empty where there is nothing that can be used."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            rows = found["answers"] if found["lawf_answers"] == SCHEMA else []
            return {_ids(prompt, self._size): _ids(answer, self._size) for prompt, answer in rows}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def write(self, answers: Mapping[Ids, Ids]) -> None:
        """Add answers, in place of the whole file at once."""
        rows = [[list(prompt), list(answer)] for prompt, answer in (self.read() | dict(answers)).items()]
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".new")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump({"lawf_answers": SCHEMA, "model": self._engine.name, "answers": rows}, file)
                os.replace(name, self.path)
            except OSError:
                os.unlink(name)
                raise

    @property
    def _size(self) -> int:
        return int(self._engine.model.get_input_embeddings().num_embeddings)


def weights_sha256(model: torch.nn.Module) -> str:
    """A fingerprint of the weights, without those of an adapter: of each its name, shape and numbers spread evenly over it."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.numel():  # what is offloaded is known by its shape only
            step = max(1, weight.numel() // SAMPLES)
            places = torch.arange(0, weight.numel(), step, device=weight.device)[:SAMPLES]
            some = weight.detach()[torch.unravel_index(places, weight.shape)].reshape(-1)  # however it lies in memory, no more is read
            digest.update(some.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _ids(value: Any, size: int) -> Ids:
    """Token ids from a file. Raises ValueError for anything else."""
    if not isinstance(value, list) or not value or not all(type(id_) is int and 0 <= id_ < size for id_ in value):
        raise ValueError("no token ids")
    return tuple(value)
