"""The doctor: every fact in its field, every fault named, no model loaded unless one is asked for."""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine import machine
from lawf_repl.engine.base import Engine
from lawf_repl.ui.doctor import doctor_view
from lawf_repl.ui.port import SessionPort
from lawf_repl.ui.theme import Theme
from lawf_repl.verbs import doctor
from lawf_repl.verbs.doctor import NEEDED, NOT_INSTALLED, OPTIONAL, _terminal, examine
from lawf_repl.verbs.repl import Shelf

FIELDS = ["versions", "optional", "devices", "threads", "decoding", "fits", "model", "folders", "terminal", "problems"]


@pytest.fixture(autouse=True)
def quiet_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setattr(doctor, "_terminal", lambda theme, environ: doctor_terminal(theme))


def doctor_terminal(theme: Theme) -> dict[str, Any]:
    return {"input": True, "output": True, "TERM": "xterm", "columns": 80, "rows": 24, "encoding": "utf-8", "unicode": True,
            "colours": theme.colour, "background": theme.tone, "plain": theme.plain}


def text_of(found: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(doctor_view(found, Theme(plain=True)))
    return cast(io.StringIO, console.file).getvalue()


def test_the_json_has_the_fields_of_its_schema_and_loads_no_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                                                  tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.engine.base.load_engine", lambda *_: pytest.fail("a model was loaded"))
    assert main(["doctor", "--json", "--sessions", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["schema", *FIELDS] and found["schema"] == "lawf.doctor/1"
    assert found["model"] is None and found["problems"] == []
    assert set(found["versions"]) == {"lawf", "python", "system", *NEEDED} and set(found["optional"]) == set(OPTIONAL)
    chosen = [one for one in found["devices"] if one["chosen"]]
    assert len(chosen) == 1 and chosen[0]["dtype"] == ("float32" if chosen[0]["device"] == "cpu" else "bfloat16")
    assert 0 < found["devices"][0]["free"] <= found["devices"][0]["total"]
    assert found["folders"]["sessions"] == {"path": str(tmp_path), "exists": True, "writable": True}
    assert {one["device"] for one in found["fits"]["devices"]} <= {one["device"] for one in found["devices"]}


def test_a_named_model_is_loaded_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    from lawf_repl.engine.base import DEMO_MODEL

    assert main(["doctor", "--json", "--model", str(DEMO_MODEL)]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["architecture"] == "Qwen3ForCausalLM" and model["bytes"] == 4 * model["parameters"] and model["context"] == 1024


def test_what_is_shown_is_what_was_found(tiny_engine: Engine, tmp_path: Path) -> None:
    found = examine(Settings(), Theme(plain=True), tmp_path, tiny_engine)
    shown = text_of(found, 200)
    for expected in (found["versions"]["torch"], "compiled", f"{found['devices'][0]['device']}  ", ", which lawf uses", "background not known",
                     "Qwen3ForCausalLM", str(tmp_path), "fits cpu", "135M", found["fits"]["formula"], "nothing is wrong"):
        assert expected in shown, expected
    assert "\x1b" not in text_of({**found, "problems": ["\x1b[2J"]}) and "nothing is wrong" not in text_of({**found, "problems": ["x"]})


def test_faults_are_named_and_exit_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_writable", lambda path: path != tmp_path)
    monkeypatch.setattr(doctor, "version", lambda name: _version(name, "peft"))
    monkeypatch.setattr(doctor, "_terminal", lambda theme, environ: doctor_terminal(theme) | {"encoding": "ascii", "unicode": False})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--json", "--sessions", str(tmp_path), "--device", "cuda"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["peft"] == NOT_INSTALLED and not any(one["chosen"] for one in found["devices"])
    for part in ("peft is not installed", f"sessions: {tmp_path} cannot be written", "ascii", "device cuda was asked for"):
        assert any(part in problem for problem in found["problems"]), part
    assert main(["doctor", "--plain", "--sessions", str(tmp_path)]) == 1
    assert "cannot be written" in " ".join(capsys.readouterr().out.split())


def _version(name: str, missing: str) -> str:
    if name == missing:
        raise PackageNotFoundError(name)
    return "1"


def test_a_torch_that_cannot_be_imported_is_a_fault_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, Any]:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "_machine", broken)
    found = examine(Settings(), Theme(plain=True))
    assert list(found) == FIELDS and found["problems"] == ["torch cannot be imported: libcudart.so.13: cannot open shared object file"]
    assert "libcudart" in text_of(found)


@pytest.mark.parametrize(("limit", "used", "spare", "free"), [("1000", "400", 100, 700), ("1000", "1500", 0, 0), ("max", "5", 0, None)])
def test_a_containers_limit_counts(tmp_path: Path, limit: str, used: str, spare: int, free: int | None) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    (tmp_path / "memory.stat").write_text(f"anon 3\ninactive_file {spare}\n")
    there, total = machine.host_memory(tmp_path)
    assert (there, total) == (free, 1000) if free is not None else total > 2**20 < there


def test_an_accelerator_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (5, 9) if number else _busy())
    found = {one.device: one for one in machine.devices(Settings())}
    assert (found["cuda:1"].name, found["cuda:1"].free, found["cuda:1"].total, found["cuda:1"].dtype) == ("GPU 1", 5, 9, "bfloat16")
    assert found["cuda:0"].free is None and found["cuda:0"].chosen and not found["cpu"].chosen
    fits = examine(Settings(), Theme(plain=True))["fits"]["devices"]
    assert [one["device"] for one in fits] == ["cpu", "cuda:1"], "what does not tell its memory has no row"


def _busy() -> tuple[int, int]:
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")


@pytest.mark.parametrize(("encoding", "unicode"), [("utf-8", True), ("ascii", False), ("cp1252", False)])
def test_the_terminal_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, encoding: str, unicode: bool) -> None:
    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stdout", object())  # as a spinner leaves it: no encoding, no isatty
    found = _terminal(Theme(), {"TERM": "xterm"})
    assert (found["encoding"], found["unicode"], found["output"], found["columns"], found["TERM"]) == (encoding, unicode, False, None, "xterm")
    assert list(found) == list(doctor_terminal(Theme()))
    monkeypatch.setattr(sys, "__stdout__", None)
    assert not _terminal(Theme(), {})["unicode"]


def test_folders_that_cannot_be_made_are_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor._writable(tmp_path / "new" / "newer") and not doctor._writable(tmp_path / "file" / "inside")


def test_the_repl_says_the_same_with_the_model_that_it_has(tiny_engine: Engine, tmp_path: Path) -> None:
    from lawf_repl.session import Session

    session = Session(tiny_engine, Settings())
    port = cast(SessionPort, session)
    same, shown = Shelf(tmp_path, Settings(), frozenset()).doctor(port, "", lambda: False, Theme(plain=True))
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(shown)
    assert same is port and "Qwen3ForCausalLM" in cast(io.StringIO, console.file).getvalue()
