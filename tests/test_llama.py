"""What the check of GGUF files makes of a llama.cpp that is missing, breaks, or does in any way otherwise than it should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lawf_repl.errors import ExportError
from lawf_repl.export import llama
from lawf_repl.export.gguf import verify_gguf, write_lora
from tests.gguf_models import tiny, write_random_adapter

gguf: Any = pytest.importorskip("gguf")


@pytest.mark.parametrize("source, verified, said", [
    ("raise ImportError('no such module')", False, "not verified: .*no such module"),
    ("import os; os.abort()", True, "stopped"),
    ("__version__ = '0.2'\nllama_log_callback = llama_log_set = lambda *_: None", False, "not verified: llama-cpp-python 0.2"),
])
def test_without_a_working_llama_cpp_nothing_passes(source: str, verified: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = verify_gguf(tmp_path / "base.gguf", tmp_path / "lora.gguf", [1], [2], [3])
    assert not found.passed and found.verified is verified
    assert re.search(said, found.reason) and "\n" not in found.reason


def spoiled(name: str, answer: dict[str, Any], rows: dict[str, torch.Tensor]) -> str:
    """Change in one way what a llama.cpp would have answered; returns its log."""
    if name == "other answer":
        answer["with_ids"] = [5, 9, 2]
    elif name == "short answer":
        answer["with_ids"] = [5, 6]
    elif name == "other base":
        answer["without_ids"] = [9, 2]
    elif name == "no effect":
        rows |= {"with.accepted": rows["without.accepted"], "with.base": rows["without.base"]}
    elif name == "scale":
        rows["zero.base"] = rows["zero.base"] + 0.01
    elif name == "logits":
        rows["with.accepted"][1, 3] += 0.01
    elif name == "base logits":
        rows["without.accepted"][2, 3] += 0.01
        rows["zero.accepted"] = rows["without.accepted"]
    elif name == "no number":
        rows["with.accepted"][0, 0] = float("nan")
    taken = {"tensors": "loaded 6 tensors", "silent": "ended"}.get(name, "loaded 12 tensors")
    return f"llama_adapter_lora_init_impl: {taken} from lora file\n"


@pytest.mark.parametrize("name, said", [
    ("right", ""), ("other answer", "with the LoRA its answer departs at token 1: expected 6, found 9"), ("short answer", "found the end"),
    ("other base", "without the LoRA"), ("no effect", "changes no logit"), ("scale", "at scale 0"),
    ("logits", "0.01 away from those of transformers"),
    ("base logits", "0.01 away from those of transformers"), ("no number", "inf away"), ("tensors", "has 12 tensors, llama.cpp took 6"),
    ("silent", "took none"),
])
def test_whatever_llama_cpp_does_otherwise_fails_the_check(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2")
    write_random_adapter(model, tmp_path / "peft", ["q_proj", "up_proj"])
    write_lora(model, tmp_path / "peft", tmp_path / "lora.gguf")
    torch.manual_seed(0)
    rows = {f"{which}.{answer}": torch.randn(count, 8) for which in ("with", "without") for answer, count in (("accepted", 3), ("base", 2))}
    rows |= {f"zero.{answer}": rows[f"without.{answer}"].clone() for answer in ("accepted", "base")}
    reference = {which: rows[f"{which}.accepted"].clone() for which in ("with", "without")}
    answer = {"vocabulary": 8, "with_ids": [5, 6, 2], "without_ids": [7, 2], "with_text": "a", "without_text": "b", "version": "0"}
    log = spoiled(name, answer, rows)

    def ask(task: dict[str, Any]) -> tuple[dict[str, Any], str]:
        for file, tensor in rows.items():
            (Path(task["folder"]) / file).write_bytes(tensor.numpy().tobytes())
        return answer, log

    monkeypatch.setattr(llama, "_ask", ask)
    found = verify_gguf(tmp_path / "base.gguf", tmp_path / "lora.gguf", [1], [5, 6, 2], [7, 2], with_logits=reference["with"],
                        without_logits=reference["without"])
    assert found.passed is (name == "right") and found.verified
    assert said in found.reason


def test_nothing_to_compare_is_no_check(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to verify"):
        verify_gguf(tmp_path / "a", tmp_path / "b", [1], [], [2])
