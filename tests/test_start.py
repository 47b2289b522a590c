"""lawf bench start: what is timed is what it says, a run that fails is no figure, and the start loads nothing early."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lawf_repl.bench import start
from lawf_repl.bench.figures import Figure
from lawf_repl.bench.terminal import COLUMNS, ROWS, Terminal
from lawf_repl.cli import main
from lawf_repl.errors import LawfError
from tests.test_house import loaded_by

needs_terminal = pytest.mark.skipif(not Terminal.available, reason="needs pseudo-terminals")
PROMPT_AND_ECHO = r"""
import os, sys, termios, time, tty
tty.setraw(0)
os.write(1, b"\x1b]11;?\x1b\\\x1b[c")
said = b""
while b"c" not in said:
    said += os.read(0, 1)
os.write(1, f"{os.get_terminal_size()} {said!r}\r\nwhat stands before it is no echo: Z \u203a ".encode())
os.write(1, os.read(0, 1))
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


def test_what_runs_is_what_the_installed_script_runs() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["lawf"].partition(":")
    assert f"from {module} import {function}\nsys.exit({function}())" in start.SCRIPT
    done = subprocess.run([sys.executable, *start.lawf("--version")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lawf ")


def test_a_run_that_fails_is_no_figure() -> None:
    for timed in (start.whole, start.first_byte):
        with pytest.raises(LawfError, match="exit code 3"):
            timed(["-c", "raise SystemExit(3)"])
    with pytest.raises(LawfError, match=r"lawf nonsense ended with exit code 2"):
        start.whole(start.lawf("nonsense"))
    with pytest.raises(LawfError, match="exit code 1"):  # it printed nothing
        start.first_byte(["-c", "pass"])


def test_a_run_ends_at_its_first_byte_or_at_its_end() -> None:
    code = ["-c", "import time\nprint(1, flush=True)\ntime.sleep(1)"]
    assert start.first_byte(code) > 0 and start.whole(code) > 1


def test_a_run_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SECONDS", 0.2)
    with pytest.raises(LawfError, match="did not end within"):
        start.whole(["-c", "import time; time.sleep(30)"])


@needs_terminal
def test_a_prompt_counts_when_it_takes_typing(monkeypatch: pytest.MonkeyPatch) -> None:
    stood, typed = start.typed_at(["-c", PROMPT_AND_ECHO])
    assert 0 < stood < typed
    with pytest.raises(LawfError, match="showed no prompt"):
        start.typed_at(["-c", "print(1)"])
    monkeypatch.setattr(start, "SECONDS", 5.0)
    with pytest.raises(LawfError, match="showed no prompt"):  # a prompt that nobody reads from
        start.typed_at(["-c", "print('\\u203a', flush=True); input()"])


@needs_terminal
def test_the_terminal_answers_and_has_a_size() -> None:
    with Terminal([sys.executable, "-c", PROMPT_AND_ECHO], {}) as terminal:
        while "›".encode() not in terminal.sent:
            assert terminal.read(30)
    shown = terminal.sent.decode()
    assert f"columns={COLUMNS}, lines={ROWS}" in shown and "rgb:1e1e/1e1e/1e1e" in shown and "?62;22c" in shown


def test_the_users_settings_do_not_change_what_is_measured() -> None:
    kept = start.surroundings({"LAWF_MODEL": "x", "NO_COLOR": "1", "PATH": "p", "PYTHONPATH": "q"})
    assert kept == {"PATH": "p", "PYTHONPATH": "q"}


def figures(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> dict[tuple[str, str], Figure]:
    """The figures of made-up seconds."""
    def whole(arguments: list[str]) -> float:
        return {"pass": 0.02}.get(arguments[1]) or {"--version": 0.03, "--help": 0.07}[arguments[2]]

    monkeypatch.setattr(start, "whole", whole)
    def first_byte(arguments: list[str]) -> float:
        return 5.0 if arguments[1] == start.SCRIPT else 4.0 if "transformers" in arguments[1] else 2.0

    monkeypatch.setattr(start, "first_byte", first_byte)
    monkeypatch.setattr(start, "typed_at", lambda arguments: (0.25, 0.3))
    monkeypatch.setattr(Terminal, "available", terminal)
    return {(one.what, one.peer.split()[0]): one for one in start.start_figures(2, 3)}


def test_the_figures_and_their_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(monkeypatch, terminal=True)
    told = {name: (round(one.ours, 3), round(one.theirs, 3), one.goal, one.reached) for name, one in found.items()}
    assert {name[0].split(": ")[0]: values for name, values in told.items() if "beyond" in name[0]} == {
        "lawf --version": (0.01, 0.12, 1.0, True), "lawf --help": (0.05, 0.12, 1.0, True)}
    assert told["lawf --version", "python"] == (0.03, 0.02, 3.0, True) and told["lawf --help", "python"] == (0.07, 0.02, 3.0, False)
    prompt = {peer: values for (what, peer), values in told.items() if what.startswith("a prompt")}
    assert prompt == {"0.5": (0.3, 0.5, 1.0, True), "python": (0.3, 0.02, None, None), "importing": (0.3, 2.0, None, None)}
    assert told["first token of lawf answer, demo model", "importing"] == (5.0, 4.0, 1.25, True)
    assert start.not_measured() == []


def test_where_there_is_no_terminal_that_row_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any(what.startswith("a prompt") for what, _ in figures(monkeypatch, terminal=False))
    monkeypatch.setattr(start, "start_figures", lambda: iter([Figure("lawf --help", 0.07, 0.02, "s", "python", 3.0)]))
    assert main(["bench", "start", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "not measured: time to a prompt" in err and found["not_measured"] == start.not_measured() != []
    assert (found["schema"], found["bench"], found["complete"]) == ("lawf.bench/1", "start", True)
    assert set(found["versions"]) == {"torch", "transformers", "peft", "python"}
    assert found["figures"][0]["ratio"] == pytest.approx(3.5) and found["figures"][0]["reached"] is False


def test_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "start", "--model", "x"]) == 2
    assert "leave out --model" in capsys.readouterr().err


def test_the_prompt_stands_before_torch_is_imported() -> None:
    assert loaded_by("import lawf_repl.verbs.repl") == ["prompt_toolkit", "rich"]


def test_an_answer_of_the_base_does_not_wait_for_peft(tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("", encoding="utf-8")
    arguments = ["answer", "What is the capital of France?", "--config", str(tmp_path / "none.toml")]
    code = f"from lawf_repl.cli import main\nassert main({arguments!r}) == 0"
    assert "peft" not in loaded_by(code)
