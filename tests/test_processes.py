"""Processes that lawf starts: this very lawf runs there, and no file of the folder that the user is in stands for a module."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import lawf_repl
from lawf_repl.bench import memory, start
from lawf_repl.config import Settings
from lawf_repl.export import llama
from lawf_repl.processes import environment, module, python
from lawf_repl.ui import exporting
from lawf_repl.ui.theme import Theme

PACKAGE = Path(str(lawf_repl.__file__)).parent


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with files that are called as modules are, and say so where they are run; PYTHONPATH has an empty entry too."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in ("random", "json", "torch", "lawf_repl"):
        (folder / f"{name}.py").write_text("import sys\nsys.stderr.write('the trap was run')\nsys.exit(99)\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}{os.pathsep}")
    return folder


def test_the_current_folder_stands_for_no_module(trap: Path) -> None:
    code = "import json, random, sys, lawf_repl; print(lawf_repl.__file__, [path for path in sys.path if path in ('', sys.argv[1])])"
    given = environment(os.environ | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}"})
    done = subprocess.run(python("-c", code, str(trap)), capture_output=True, text=True, env=given)
    assert done.stdout.split() == [str(PACKAGE / "__init__.py"), "[]"], done.stderr
    done = subprocess.run(module("lawf_repl", "--version"), capture_output=True, text=True, env=environment(os.environ))
    assert done.stdout == f"lawf {lawf_repl.__version__}\n", done.stderr


def test_the_environment_has_no_entry_that_means_the_current_folder() -> None:
    many = os.pathsep.join(["", "/a", "", "/b", ""])
    assert environment({"A": "1", "PYTHONPATH": many}) == {"A": "1", "PYTHONPATH": f"/a{os.pathsep}/b"}
    assert environment({"A": "1", "PYTHONPATH": ""}) == environment({"A": "1"}) == {"A": "1"}


def test_an_export_of_the_repl_runs_nothing_of_the_current_folder(trap: Path, fixed_session: Path) -> None:
    def save(path: str) -> str:
        shutil.copy(fixed_session, path)
        shutil.copytree(fixed_session.with_suffix(".adapter"), Path(path).with_suffix(".adapter"))
        return path

    session: Any = SimpleNamespace(has_adapter=True, save=save, settings=Settings(), record_export=lambda *arguments: None)
    written = io.StringIO()
    passed = exporting.export(session, "peft out", Console(file=written, width=200), Theme(plain=True))
    assert passed and "PASS  out" in written.getvalue() and (trap / "out" / "adapter_config.json").is_file(), written.getvalue()


def test_llama_cpp_is_asked_in_a_process_that_runs_nothing_of_it(trap: Path) -> None:
    result, log = llama._ask({"do": "tokenize", "base": str(trap / "none.gguf"), "texts": []})
    assert "the trap" not in log and result is not None, log


def test_measurements_run_nothing_of_it(trap: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such shape"):
        memory.measured({"kind": "upper", "shape": "no such shape", "device": "cpu", "dtype": "float32"})
    assert start.first_byte(start.lawf("--version")) > 0 and start.whole(start.lawf("--help")) > 0


def test_every_interpreter_is_started_by_these_functions() -> None:
    found = [str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if re.search(r"sys\.executable", file.read_text(encoding="utf-8"))]
    assert found == ["processes.py"], "python() and module() leave the current folder out"
