"""What an export prints to be copied gives the accepted answer when it is run, in the number type that was verified."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import DEMO_MODEL, Engine
from lawf_repl.errors import ExportError
from lawf_repl.export import commands, run
from lawf_repl.export.card import Base
from lawf_repl.export.commands import Example
from lawf_repl.export.place import placed
from lawf_repl.export.source import Source, read_source
from lawf_repl.export.trials import Trial
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.session import open_session
from lawf_repl.store import adapter_path
from lawf_repl.verbs.export import base_settings
from tests.test_export import lawf

RIGHT = "The capital of Australia is Canberra."
QUESTION = {"role": "user", "content": "What is the capital of Australia?"}
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
SYSTEM = {"role": "system", "content": "Be brief; it's late."}


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


def words(command: str) -> list[str]:
    """A command as bash takes it."""
    done = subprocess.run(["bash", "-c", f"set -- {command}; printf '%s\\0' \"$@\""], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def copied(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """What a printed command of lawf or python says, run in this process."""
    program, *arguments = words(command)
    capsys.readouterr()
    if program == "lawf":
        assert main(arguments) == 0
    else:
        assert (program, arguments[0]) == ("python", "-c")
        exec(arguments[1], {})
    return capsys.readouterr().out


@needs_bash
@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("format_", ["peft", "merged"])
def test_the_printed_commands_print_the_accepted_answer(format_: str, fixed_session: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = lawf(capsys, "export", fixed_session, tmp_path / "it's out", "--format", format_, "--json")
    printed = [command for command in json.loads(out)["commands"] if not command.startswith("vllm")]
    assert code == 0 and len(printed) == (3 if format_ == "peft" else 2)
    for command in printed:
        assert RIGHT in copied(capsys, command), command
    pythons = [command for command in printed if command.startswith("python")]
    assert all(f'dtype="{"float32" if format_ == "peft" else "bfloat16"}"' in command for command in pythons)  # not what transformers would take
    if format_ == "peft":
        assert 'dtype="float32"' in (tmp_path / "it's out" / "README.md").read_text()
        assert "PeftModel.from_pretrained" in pythons[0] and "load_adapter" in pythons[1]


@pytest.mark.usefixtures("same_process")
def test_an_adapter_that_half_precision_undoes_is_not_for_vllm_and_peft_says_so(fixed_session: Path, tmp_path: Path,
                                                                               capsys: pytest.CaptureFixture[str]) -> None:
    weak = tmp_path / "weak"
    shutil.copytree(adapter_path(fixed_session), weak)
    tensors = load_file(weak / "adapter_model.safetensors")
    save_file({name: weight * (0.002 if "lora_B" in name else 1) for name, weight in tensors.items()}, weak / "adapter_model.safetensors")
    code, said, _ = lawf(capsys, "export", weak, tmp_path / "out", "--format", "vllm")
    assert code == 1 and "computing in bfloat16 undoes the fix: export it as merged with --dtype float32, or train" in said
    assert not (tmp_path / "out").exists()
    code, said, _ = lawf(capsys, "export", weak, tmp_path / "out", "--format", "peft")
    assert code == 0 and "note: in bfloat16 load_adapter" in said and "computing in bfloat16 undoes the fix: serve it in float32" in said
    code, said, _ = lawf(capsys, "export", fixed_session, tmp_path / "good", "--format", "vllm")
    assert "computed in bfloat16: load_adapter: 1 of 1 accepted answers" in said and "--dtype bfloat16 --enable-lora" in said


@needs_bash
def test_a_conversation_reaches_every_server_whole(tmp_path: Path) -> None:
    example = Example((SYSTEM, QUESTION), {"enable_thinking": False, "mood": "calm"})
    base, out = Base("owner/base", "abc", "owner/base", None, "float16"), tmp_path / "out"
    settings = Settings(dtype="float16", trust_remote_code=True)
    answer, by_peft, by_transformers = commands.peft(out, base, example, False, settings)
    assert words(answer) == ["lawf", "answer", "--model", "owner/base", "--revision", "abc", "--dtype", "float16", "--trust-remote-code", "--adapter",
                             str(out), "--template-arg", "enable_thinking=false", "--template-arg", "mood=calm", "--system", SYSTEM["content"],
                             QUESTION["content"]]
    for command in (by_peft, by_transformers):
        code = words(command)[2]
        compile(code, "printed", "exec")
        assert 'from_pretrained("owner/base", revision="abc", dtype="float16", trust_remote_code=True)' in code
        assert json.dumps([SYSTEM, QUESTION]) in code and "'enable_thinking': False, 'mood': 'calm'" in code
    cli, server = commands.gguf(None, out, example)
    assert words(cli)[-4:] == ["-sys", SYSTEM["content"], "-p", QUESTION["content"]] and "-ctk f32 -ctv f32" in cli and "-ctk f32" in server
    assert json.loads(words(server)[words(server).index("--chat-template-kwargs") + 1]) == example.arguments
    assert commands.ollama(out, "fix", Example((QUESTION,)))[1] == "ollama run fix 'What is the capital of Australia?'"
    request = words(commands.ollama(out, "fix", example)[1])  # `ollama run` takes no system message
    assert json.loads(request[-1])["messages"] == [SYSTEM, QUESTION]
    plain = commands.python(Example((QUESTION,), template=False), "model = None", '"x"')
    assert "apply_chat_template" not in plain and 'tokenizer("What is the capital' in words(plain)[2]


# What the session knows of its prompts

def test_the_arguments_of_the_template_come_from_the_session_unless_a_flag_gives_them(demo_engine: Engine, demo_probe_set: ProbeSet,
                                                                                     tmp_path: Path) -> None:
    session = open_session(demo_engine, Settings(template_args=(("enable_thinking", False),), max_tokens=1), demo_probe_set, tmp_path / "s.jsonl")
    for _ in session.ask("Hello"):
        pass
    assert session.file is not None
    session.file.close()
    source = read_source(tmp_path / "s.jsonl", with_adapter=False)
    assert source.template_args == {"enable_thinking": False} and source.weights
    assert base_settings(argparse.Namespace(), Settings(), source).template_args == (("enable_thinking", False),)
    given = (("enable_thinking", True),)
    assert base_settings(argparse.Namespace(template_args=given), Settings(template_args=given), source).template_args == given
    assert base_settings(argparse.Namespace(), Settings(template_args=given), Source(Path("x"), None, {"id": "lawf-demo"})).template_args == given


def test_prompts_that_a_server_would_make_otherwise_are_told(demo_engine: Engine) -> None:
    ids = demo_engine.prompt_ids([QUESTION])

    def trial(prompt_ids: Sequence[int]) -> Trial:
        return Trial("q", tuple(prompt_ids), (5,), (6,), True, (5,), (QUESTION,))

    assert run.made_otherwise(demo_engine, [trial(ids)]) == []
    assert "1 of 2 prompts otherwise" in run.made_otherwise(demo_engine, [trial(ids), trial(ids[:-1])])[0]


# What no export may take away

@pytest.mark.usefixtures("same_process")
def test_sessions_the_adapter_itself_and_the_base_are_not_replaced(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "s.jsonl"
    shutil.copy(fixed_session, here)
    shutil.copytree(adapter_path(fixed_session), tmp_path / "s.adapter")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, out, said in ((fixed_session, here, "lawf train SESSION"), (here, tmp_path / "s.adapter", "in the way of"),
                              (here, tmp_path / "s.adapter" / "x", "in the way of"), (here, tmp_path, "in the way of"),
                              (here, DEMO_MODEL, "is the base itself")):
        code, _, err = lawf(capsys, "export", source, out, "--format", "peft", "--force")
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_sessions_are_for_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["a.jsonl", "b.jsonl", "out"], ["a.jsonl", "b.jsonl", "c.jsonl", "out"]):
        code, _, err = lawf(capsys, "export", *arguments, "--format", "peft")
        assert code == 2 and "lawf train SESSION... --out DIR" in err and err.count("\n") == 1
    assert "unrecognized arguments: --odd" in lawf(capsys, "export", "a", "b", "--odd", "--format", "peft")[2]
    code, _, err = lawf(capsys, "export", "a.jsonl", "out", "--format", "peft", "--base-id", "../x")
    assert code == 2 and err.startswith("lawf: --base-id '../x': expected OWNER/NAME") and err.count("\n") == 1


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(("format_", "full"), [("peft", "out"), ("merged", "out"), ("peft", "work")])
def test_a_full_disk_is_one_line_and_leaves_nothing(format_: str, full: str, fixed_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    def save_file(tensors: Any, file: Any, metadata: Any = None) -> None:
        """As safetensors says it."""
        if full == "work" or ".lawf-partial-" in str(file):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, file, metadata)

    real = safetensors.torch.save_file
    for place in ("peft.peft_model.safe_save_file", "transformers.modeling_utils.safe_save_file", "lawf_repl.export.trials.save_file"):
        monkeypatch.setattr(place, save_file)
    code, _, err = lawf(capsys, "export", fixed_session, tmp_path / "out", "--format", format_)
    assert code == 2 and "No space left on device" in err and err.count("\n") == 1 and ("TMPDIR" in err) is (full == "work")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_between_the_two_renames_brings_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".lawf-partial-" in str(source):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("lawf_repl.export.place.os.rename", rename)
    with pytest.raises(KeyboardInterrupt), placed(out, force=True) as staging:
        staging.write_text("new")
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ExportError, match="exists already"), placed(out):
        raise AssertionError("nothing may be written")
