"""Whether a base and a LoRA in GGUF do in llama.cpp what they do here: loaded in a fresh process, asked, compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lawf_repl.errors import ExportError
from lawf_repl.export.gguf_names import library
from lawf_repl.export.identity import NOT_VERIFIED
from lawf_repl.processes import environment, python

CHILD = Path(__file__).with_name("llama_child.py")
TOLERANCE = 1e-3       # logits; float32 in both gives 1e-5, a wrong order of rows in q and k 1
SECONDS = 600.0        # for one check; a base of 0.6B parameters takes 12


@dataclass(frozen=True)
class GgufCheck:
    """What llama.cpp made of a base and a LoRA. `passed` is never true unless llama.cpp ran and all of it held."""

    passed: bool
    reason: str                                  # one line: what held, what did not, or "not verified: " and why nothing was seen
    verified: bool = True                        # False: llama.cpp did not run, so nothing is known
    with_lora_ids: tuple[int, ...] = ()          # its greedy answers
    without_lora_ids: tuple[int, ...] = ()
    with_lora_text: str = ""                     # the same as llama.cpp prints them
    without_lora_text: str = ""
    effect: float | None = None                  # largest difference between its logits with and without the LoRA
    largest_difference: float | None = None      # largest difference between its logits and the reference's, where one was given


def verify_gguf(base_file: Path, lora_file: Path, prompt_ids: Sequence[int], accepted_ids: Sequence[int], base_ids: Sequence[int], *,
                with_logits: torch.Tensor | None = None, without_logits: torch.Tensor | None = None, tolerance: float = TOLERANCE) -> GgufCheck:
    """Load both files in llama.cpp, in a process of its own, and see that it answers the prompt as it should.

    It passes where llama.cpp took all tensors of the LoRA; greedy decoding gives exactly `accepted_ids` with it and `base_ids`
    without; at scale 0 the logits are the base's and at 1 they are not. The right text is no proof (a LoRA whose q and k are in
    the wrong order gave it 20 times of 20), so give the reference where it is at hand: `with_logits` (T, V), those of base and
    adapter in transformers that predict each accepted token, and `without_logits` (T, V), the base's for the same tokens; then no
    logit may be further from it than `tolerance`. Raises ExportError for empty ids and where the gguf package is not installed.
    """
    if not prompt_ids or not accepted_ids or not base_ids:
        raise ExportError("nothing to verify: expected the ids of a prompt and of both answers")
    with tempfile.TemporaryDirectory(prefix="lawf-gguf-") as name:
        folder = Path(name)
        task = {"do": "check", "base": str(base_file), "lora": str(lora_file), "prompt_ids": list(prompt_ids), "accepted_ids": list(accepted_ids),
                "base_ids": list(base_ids), "folder": name}
        result, log = _ask(task)
        if result is None or "failure" in result or "missing" in result:
            return _not_run(result, log)
        size = result["vocabulary"]
        logits = {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32).reshape(-1, size) for file in folder.iterdir()}
    effect = max(_distance(logits["with.accepted"], logits["without.accepted"]), _distance(logits["with.base"], logits["without.base"]))
    at_zero = max(_distance(logits["zero.accepted"], logits["without.accepted"]), _distance(logits["zero.base"], logits["without.base"]))
    away = [_distance(logits[f"{which}.accepted"], reference) for which, reference in (("with", with_logits), ("without", without_logits))
            if reference is not None]
    taken = re.search(r"loaded (\d+) tensors from lora file", log)
    expected = len(library().GGUFReader(lora_file).tensors)
    wrong = [line for line in (
        f"the LoRA has {expected} tensors, llama.cpp took {taken[1] if taken else 'none'}" if taken is None or int(taken[1]) != expected else "",
        _departure("without the LoRA", result["without_ids"], base_ids),
        _departure("with the LoRA", result["with_ids"], accepted_ids),
        "" if effect > 0 else "the LoRA changes no logit",
        "" if at_zero <= 1e-6 else f"at scale 0 the logits are {at_zero:.2g} away from the base's",
        f"its logits are {max(away):.2g} away from those of transformers, more than {tolerance:g}" if away and not max(away) <= tolerance else "",
    ) if line]
    held = (f"took all {expected} tensors (llama-cpp-python {result['version']}), gave the accepted answer with the LoRA and the base's without"
            + (f", logits within {max(away):.1g} of those of transformers" if away else ""))
    return GgufCheck(not wrong, "; ".join(wrong) if wrong else held, True, tuple(result["with_ids"]), tuple(result["without_ids"]),
                     result["with_text"], result["without_text"], effect, max(away) if away else None)


def llama_ids(base_file: Path, texts: Sequence[str]) -> list[list[int]] | None:
    """Ids that llama.cpp splits texts into with the tokenizer of a GGUF base, marks such as <|im_start|> taken for what they are.

    None where llama-cpp-python is not installed. Raises ExportError where llama.cpp does not load the file.
    """
    result, log = _ask({"do": "tokenize", "base": str(base_file), "texts": list(texts)})
    if result is not None and "missing" in result:
        return None
    if result is None or "failure" in result:
        raise ExportError(_not_run(result, log).reason)
    ids: list[list[int]] = result["ids"]
    return ids


def _ask(task: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The child's result, None where it ended without one, and llama.cpp's log with how the child ended as its last line."""
    command = python(str(CHILD))  # without the files beside it, which are named as libraries are
    try:
        done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, encoding="utf-8", errors="replace",
                              timeout=SECONDS, check=False, env=environment(os.environ))
    except subprocess.TimeoutExpired:
        return None, f"it did not end within {SECONDS:.0f} s"
    ended = f"{done.stderr}\nended with {done.returncode}"
    try:
        return (dict(json.loads(done.stdout.strip().splitlines()[-1])), done.stderr) if done.returncode == 0 else (None, ended)
    except (ValueError, IndexError):
        return None, ended


def _not_run(result: dict[str, Any] | None, log: str) -> GgufCheck:
    if result is not None and "missing" in result:
        version = result.get("version", "cannot be imported")
        return GgufCheck(False, f"{NOT_VERIFIED}llama-cpp-python {version} ({result['missing']}): pip install 'lawf-repl[gguf]'", verified=False)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\b(error|failed|mismatch|expect|incorrect|does not exist)\b|ASSERT", line)]
    last = (told or lines or ["it said nothing"])[0 if result is not None else -1]
    what = result["failure"] if result is not None else f"llama.cpp stopped ({lines[-1] if lines else 'without a word'})"
    return GgufCheck(False, f"{what}: {last[:200]}")


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; infinite for other shapes, and where one of them is no number."""
    if a.shape != b.shape:
        return float("inf")
    found = float((a - b.detach().float().cpu()).abs().max())
    return found if found == found else float("inf")


def _departure(when: str, found: Sequence[int], expected: Sequence[int]) -> str:
    """Where an answer is not the expected one; empty where it is."""
    if list(found) == list(expected):
        return ""
    at = next((number for number, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
    tokens = [str(ids[at]) if at < len(ids) else "the end" for ids in (found, expected)]
    return f"{when} its answer departs at token {at}: expected {tokens[1]}, found {tokens[0]}"
