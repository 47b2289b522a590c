"""lawf completion: a real bash completes commands, flags, mistakes, files and sessions; the other shells get a script each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shtab

from lawf_repl.cli import main
from lawf_repl.demo.edits import load_edits
from lawf_repl.parser import COMMANDS, INSTALL_HELP, SHELLS, make_parser
from lawf_repl.verbs.completion import script
from tests.test_house import loaded_by

BASH = shutil.which("bash")


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


def completed(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words` behind lawf, in a folder."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "lawf"  # the script asks it for names
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lawf_repl "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (folder / "script.bash").write_text(script("bash"), encoding="utf-8")
    asked = ('source ./script.bash\nCOMP_WORDS=(lawf "$@")\nCOMP_CWORD=$#\nword="${!#}"\n'
             'function="$(complete -p lawf | sed "s/.*-F \\([^ ]*\\).*/\\1/")"\n"$function" lawf "$word" ""\nprintf "%s\\n" "${COMPREPLY[@]}"')
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parent.parent),
                                "XDG_CONFIG_HOME": str(folder)}
    done = subprocess.run([str(BASH), "--norc", "-c", asked, "bash", *words], capture_output=True, text=True, cwd=folder, env=environment, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(BASH is None or sys.platform == "win32", reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    for name in ("sessions/capital.jsonl", "carried.jsonl", "catalogue.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "cases").mkdir()
    assert set(completed(tmp_path, "")) >= set(COMMANDS)
    assert completed(tmp_path, "se") == ["sessions"] and completed(tmp_path, "do") == ["doctor"]
    assert completed(tmp_path, "answer", "--max-t") == ["--max-tokens"] and completed(tmp_path, "answer", "--retr") == []
    assert completed(tmp_path, "replay", "--retr") == ["--retrain"]
    assert completed(tmp_path, "answer", "--device", "c") == ["cpu", "cuda"]
    assert completed(tmp_path, "demo", "capital-au") == [edit["name"] for edit in load_edits() if edit["name"].startswith("capital-au")] != []
    assert completed(tmp_path, "bench", "st") == ["start"] and completed(tmp_path, "completion", "z") == ["zsh"]
    assert set(completed(tmp_path, "show", "ca")) == {"capital", "carried.jsonl", "cases"}, "names, session files and folders"
    assert set(completed(tmp_path, "answer", "--messages", "ca")) >= {"carried.jsonl", "catalogue.txt", "cases"}
    assert completed(tmp_path, "answer", "--model", "ca") == ["cases"]


def test_every_shell_of_shtab_has_a_script_and_a_way_to_install_it() -> None:
    assert list(SHELLS) == list(shtab.SUPPORTED_SHELLS)
    for shell in SHELLS:
        assert "doctor" in script(shell) and f"lawf completion {shell}" in INSTALL_HELP


def test_the_scripts_leave_the_command_line_as_it_was() -> None:
    before = make_parser().format_help()
    script("bash")
    assert make_parser().format_help() == before and not hasattr(make_parser()._actions[-1], "complete")


def test_the_names_are_those_of_the_folder_and_steer_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl", "\x1b[2J.jsonl", "notes.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert main(["completion", "--names", "--sessions", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["one", "two"]


@pytest.mark.parametrize(("arguments", "said"), [([], "expected a shell"), (["csh"], "invalid choice: 'csh'")])
def test_a_shell_has_to_be_named(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["completion", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_help_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    assert INSTALL_HELP in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bash"], ["--names"]])
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    assert loaded_by(f"from lawf_repl.cli import main\nassert main({['completion', *arguments]!r}) == 0") == []
