"""`lawf check`: the wrong base, an adapter without effect and an answer that no longer comes are named, and nothing else fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import DEMO_MODEL, load_engine
from lawf_repl.export.identity import effect, match_base, misfits, weights_sha256
from lawf_repl.export.peft import base_of, write_peft
from lawf_repl.export.source import read_source
from lawf_repl.learn.adapter import Adapter
from lawf_repl.store import adapter_path
from tests.conftest import make_byte_tokenizer, make_tiny_model

RIGHT, WRONG = "The capital of Australia is Canberra.", "The capital of Australia is Sydney."


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


@pytest.fixture
def exported(fixed_session: Path, tmp_path: Path) -> Path:
    """A peft folder with lawf.json."""
    engine, source = load_engine(Settings()), read_source(fixed_session)
    assert source.adapter is not None
    write_peft(engine, Adapter.load(engine.model, source.adapter), source, tmp_path / "exported", base_of(engine, None, None))
    return tmp_path / "exported"


def check(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, object]]:
    code = main(["check", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def scaled(folder: Path, by: float) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: weight * (by if "lora_B" in name else 1) for name, weight in tensors.items()}, folder / "adapter_model.safetensors")


def failed(found: dict[str, object]) -> dict[str, str]:
    checks = found["checks"]
    assert isinstance(checks, list)
    return {one["what"]: one["detail"] for one in checks if not one["ok"]}


def test_a_good_adapter_passes_with_its_scorecard(fixed_session: Path, exported: Path, capsys: pytest.CaptureFixture[str],
                                                  tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = ["What is the capital of Spain?", "Please give me the capital of Australia.", "What is the capital of Spain?"]
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in asked))
    for path, how in ((fixed_session, "the same weights, config and tokenizer"), (exported, "the same weights")):
        code, found = check(capsys, path, "--prompts", prompts)
        assert code == 0 and failed(found) == {} and how in str(found["checks"])
        assert list(found) == ["schema", "model", "adapter", "ok", "checks", "accepted", "scorecard", "changed"]
        assert found["schema"] == "lawf.check/1" and found["model"] == "lawf-demo"
        assert found["accepted"] == [{"prompt": "What is the capital of Australia?", "accepted": RIGHT, "adapter": RIGHT}]
        assert found["changed"] == [{"prompt": "Please give me the capital of Australia.", "base": WRONG, "adapter": RIGHT}]
        card = found["scorecard"]
        assert isinstance(card, dict) and card["reliability"] == 1 and card["probes"]["n"] == 2 and card["probes"]["flips"] == 0.5
    assert main(["check", str(exported)]) == 0
    said = capsys.readouterr().out
    assert said.endswith("PASS\n") and "on 208 prompts, 0.0% answered otherwise" in said


def test_an_adapter_without_effect_or_with_too_little_is_named(exported: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of Spain?\n")
    scaled(exported, 0.1)
    code, found = check(capsys, exported, "--prompts", prompts)
    assert code == 1 and failed(found).keys() == {"file", "accepted answers"} and "0 of 1" in failed(found)["accepted answers"]
    scaled(exported, 0.0)
    (exported / "lawf.json").unlink()
    code, found = check(capsys, exported, "--prompts", prompts)
    assert code == 1 and failed(found).keys() == {"effect"} and "every B of the LoRA is zero" in failed(found)["effect"]
    scaled(exported, float("nan"))
    assert "not finite" in effect(exported).detail


def test_another_base_is_named_by_hash_where_there_is_one_and_by_shapes_otherwise(
        exported: Path, fixed_session: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sister = tmp_path / "sister"
    shutil.copytree(DEMO_MODEL, sister)
    weights = load_file(sister / "model.safetensors")
    save_file({name: weight * (1.5 if "layers.0.mlp" in name else 1) for name, weight in weights.items()}, sister / "model.safetensors",
              metadata={"format": "pt"})
    code, found = check(capsys, exported, "--model", sister)
    assert code == 1 and "has other weights than lawf-demo" in failed(found)["base"]
    code, found = check(capsys, fixed_session, "--model", sister)  # of the same config and tokenizer
    assert code == 1 and "has other weights than lawf-demo" in failed(found)["base"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of Spain?\n")
    plain = tmp_path / "plain"
    shutil.copytree(adapter_path(fixed_session), plain)
    code, found = check(capsys, plain, "--model", sister, "--prompts", prompts)
    assert failed(found) == {} and "no hash is recorded" in str(found["checks"])  # shapes cannot tell: it is said
    config = json.loads((sister / "config.json").read_text())
    (sister / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}}))
    code, found = check(capsys, fixed_session, "--model", sister)
    assert code == 1 and "another config than lawf-demo" in failed(found)["base"]
    make_byte_tokenizer().save_pretrained(str(tmp_path / "tiny"))
    make_tiny_model().save_pretrained(str(tmp_path / "tiny"))
    code, found = check(capsys, plain, "--model", tmp_path / "tiny")
    assert code == 1 and "is not this adapter's base: it has no layer model.layers.4" in failed(found)["base"]
    code, found = check(capsys, fixed_session, "--model", tmp_path / "tiny")
    assert code == 1 and "base" in failed(found)


def test_a_hash_of_weights_sees_every_tensor_and_not_the_number_type() -> None:
    model = make_tiny_model().bfloat16()
    known = weights_sha256(model)
    assert weights_sha256(model.float()) == known
    seen = {known}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.reshape(-1)[0] += 1
        seen.add(weights_sha256(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_shapes_are_compared_for_every_matrix(exported: Path, fixed_session: Path) -> None:
    engine = load_engine(Settings())
    assert misfits(engine.model, exported) == [] and match_base(read_source(exported), engine, exported).ok
    tensors = load_file(exported / "adapter_model.safetensors")
    name = next(name for name in tensors if "k_proj.lora_B" in name)
    tensors[name] = torch.cat([tensors[name]] * 2)
    save_file(tensors, exported / "adapter_model.safetensors")
    assert len(misfits(engine.model, exported)) == 1 and "k_proj has outputs of width 96, the adapter's are 192" in misfits(engine.model, exported)[0]
