"""The command line as its users call it: exit codes, one clear line for bad input, JSON field for field."""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lawf_repl import __version__, store
from lawf_repl.cli import main
from lawf_repl.engine.base import DEMO_MODEL
from lawf_repl.parser import COMMANDS, make_parser
from lawf_repl.session import Session
from tests.conftest import make_byte_tokenizer, make_tiny_model

AUSTRALIA = "What is the capital of Australia?"
RIGHT = "The capital of Australia is Canberra."


@pytest.fixture(autouse=True)
def no_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which bad input is refused."""
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("lawf: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_answer_gives_the_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "answer", "What is the capital of France?") == (0, "The capital of France is Paris.\n", "")


def test_answer_json_has_the_fields_of_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "answer", AUSTRALIA, "--json")
    answer = json.loads(out)
    assert code == 0 and list(answer) == ["schema", "model", "prompt", "prompt_ids", "text", "finish", "tokens", "timing"]
    assert answer["schema"] == "lawf.answer/1" and answer["finish"] == "eos" and answer["text"] == "The capital of Australia is Sydney."
    assert set(answer["timing"]) == {"prefill_s", "decode_s", "tokens_per_s"}
    for token in answer["tokens"]:
        assert set(token) == {"id", "text", "p", "rank", "entropy", "alternatives"} and len(token["alternatives"]) == 8
    assert "".join(token["text"] for token in answer["tokens"]) == answer["text"] + "<|im_end|>"


def test_a_prompt_comes_from_standard_input_a_file_or_messages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                                               tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("What is the capital of Spain?\n", encoding="utf-8")
    assert run(capsys, "answer", f"@{tmp_path}/q.txt")[1] == "The capital of Spain is Madrid.\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is the capital of Italy?\n")))
    assert run(capsys, "answer", "-")[1] == "The capital of Italy is Rome.\n"
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is the capital of Greece?"}]
    (tmp_path / "m.json").write_text(json.dumps(messages), encoding="utf-8")
    assert run(capsys, "answer", "--messages", f"{tmp_path}/m.json")[1] == "The capital of Greece is Athens.\n"


def test_sampling_and_limits_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "answer", AUSTRALIA, "--max-tokens", "3")
    assert code == 0 and out == "The capital of\n" and "--max-tokens" in err
    warm = ["answer", AUSTRALIA, "--temperature", "2.5", "--seed", "4"]
    assert run(capsys, *warm) == run(capsys, *warm)


def test_fix_by_want_does_the_whole_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    session = tmp_path / "one.jsonl"
    code, out, _ = run(capsys, "fix", AUSTRALIA, "--want", RIGHT, "--json", "--session", str(session), "--adapter-out", str(tmp_path / "lora"),
                       "--paraphrase", "Tell me the capital of Australia.", "--neighbour", "What is the capital of Austria?")
    fix = json.loads(out)
    assert code == 0 and list(fix) == ["schema", "prompt", "before", "accepted", "after", "fixed", "anchors", "completion_tokens", "training",
                                       "scorecard", "session", "adapter"]
    assert fix["schema"] == "lawf.fix/1" and fix["fixed"] is True
    assert (fix["before"], fix["accepted"], fix["after"]) == ("The capital of Australia is Sydney.", RIGHT, RIGHT)
    assert set(fix["anchors"][0]) == {"position", "rejected", "chosen", "rejected_id", "chosen_id", "confidence", "p_ref", "p_after"}
    assert all(anchor["p_after"] >= 0.95 > anchor["p_ref"] for anchor in fix["anchors"])
    assert set(fix["training"]) == {"steps", "seconds", "stop_reason", "loss"} and fix["training"]["stop_reason"] == "converged"
    card = fix["scorecard"]
    assert card["reliability"] == 1 and card["generality"]["n"] == 1 and card["locality"] == {"n": 1, "exact": 1}
    assert card["probes"]["n"] >= 200 and card["probes"]["drift_nats"] <= 0.001
    assert [event["type"] for event in store.load(session).events] == [
        "note", "prompt", "completion", "correction", "completion", "accept", "note", "note", "training", "adapter", "adapter", "rerun", "scorecard"]
    for folder in (tmp_path / "lora", tmp_path / "one.adapter"):
        assert (folder / "adapter_model.safetensors").is_file()
    again = run(capsys, "answer", AUSTRALIA, "--adapter", str(tmp_path / "lora"))
    assert again[:2] == (0, RIGHT + "\n")
    assert "exists already" in refused(capsys, "fix", AUSTRALIA, "--want", RIGHT, "--session", str(session))


def test_existing_outputs_are_refused_before_any_work_and_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("lora", "one.adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("keep", encoding="utf-8")
    ask = ["fix", AUSTRALIA, "--want", RIGHT]
    assert "exists already" in refused(capsys, *ask, "--adapter-out", str(tmp_path / "lora"))
    assert "exists already" in refused(capsys, *ask, "--session", str(tmp_path / "one.jsonl"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lora", "mine.txt", "mine.txt", "one.adapter"]


def test_fix_by_text_finds_the_same_anchors(capsys: pytest.CaptureFixture[str]) -> None:
    found = [json.loads(run(capsys, "fix", AUSTRALIA, *how, "--json")[1]) for how in (["--want", RIGHT], ["--fix", " Sydney=> Canberra"],
                                                                                       ["--fix", "Sydney=>Canberra"])]
    anchors = [[(a["position"], a["rejected_id"], a["chosen_id"]) for a in fix["anchors"]] for fix in found]
    assert anchors[0] == anchors[1] == anchors[2] and all(fix["fixed"] for fix in found)


def test_nothing_to_fix_says_so_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fix", "What is the capital of France?", "--want", "The capital of France is Paris.", "--json")
    assert code == 0 and "nothing to fix" in err and json.loads(out)["fixed"] is True and json.loads(out)["training"] is None


def test_each_fix_of_a_list_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fix", AUSTRALIA, "--fix", " Australia=> Australia", "--fix", " Sydney=> Canberra", "--json")
    assert code == 0 and json.loads(out)["accepted"] == RIGHT and json.loads(out)["training"] is not None


def test_a_training_that_does_not_reach_the_anchor_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fix", AUSTRALIA, "--want", RIGHT, "--json", "--max-seconds", "0.001")
    fix = json.loads(out)
    assert code == 1 and fix["fixed"] is False and fix["training"]["stop_reason"] == "max_seconds" and fix["after"] == fix["before"]


def test_demo_lists_plays_and_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--list")
    assert code == 0 and len(out.splitlines()) >= 36 and "capital-australia" in out
    code, out, _ = run(capsys, "demo")
    assert code == 0 and "Sydney" in out and "Canberra" in out and "Fixed" in out and "\x1b" not in out
    assert "did you mean capital-australia" in refused(capsys, "demo", "capital-australa")
    assert "ambiguous: give one of capital-australia, " in refused(capsys, "demo", "capital")


@pytest.mark.parametrize(("arguments", "said"), [
    (["answer", "x", "--model", "./nowhere"], "the folder does not exist"),
    (["answer", "x", "--model", "owner/name", "--offline"], "not in the local cache"),
    (["answer", "x", "--model", __file__], "test_cli.py is a file: expected a folder with config.json, or a hub id"),
    (["answer", "x", "--model", "nope/"], "expected a folder or a hub id such as Qwen/Qwen3-0.6B, found 'nope/'"),
    (["answer", "x", "--model", "a/b/c", "--offline"], "expected a folder or a hub id such as Qwen/Qwen3-0.6B, found 'a/b/c'"),
    (["answer", ""], "the prompt is empty"),
    (["answer"], "expected one prompt"),
    (["answer", "@nowhere.txt"], "nowhere.txt cannot be read"),
    (["answer", "word " * 3000], "the model's context is 1024"),
    (["answer", "x", "--device", "mps"], "device mps"),
    (["answer", "x", "--temperature", "hot"], "temperature"),
    (["answer", "x", "--bogus"], "unrecognized arguments: --bogus (see"),
    (["answer", "x", "--config", "nowhere.toml"], "nowhere.toml"),
    (["answer", "x", "--adapter", "nowhere"], "no adapter at nowhere"),
    (["fix", "x"], "one of the arguments --fix --want is required"),
    (["fix", AUSTRALIA, "--json", "--fix", "Perth=>Canberra"], "'Perth' does not stand in the answer"),
    (["fix", AUSTRALIA, "--fix", "Perth"], "found no =>"),
    (["fix", AUSTRALIA, "--want", ""], "--want is empty"),
    (["fix", AUSTRALIA, "--want", "x", "--session", "/nowhere/at/all.jsonl"], "/nowhere/at"),
    (["answer", "\udcff"], "not valid UTF-8"),
    (["answer", "x", "--template-arg", "tokenize=false"], "lawf's own to set"),
    (["demo", "--model", "x"], "leave out --model"),
    (["nonsense"], "invalid choice: 'nonsense'"),
    (["anwser", "hi"], "invalid choice: 'anwser'; did you mean answer?"),
    (["answer", "hi", "--tempratur", "3"], "unrecognized arguments: --tempratur 3; did you mean --temperature? (see lawf --help)"),
    (["export", "a", "b", "--format", "peft", "--froce=1"], "unrecognized arguments: --froce=1; did you mean --force?"),
    (["export", "a", "b", "--format", "pfet"], "argument --format: invalid choice: 'pfet'; did you mean peft?"),
    (["--resum"], "unrecognized arguments: --resum; did you mean --resume?"),
    ([], "needs a terminal"),
])
def test_bad_input_is_one_clear_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    if "mps" in arguments and sys.platform == "darwin":
        pytest.skip("this machine may have it")
    assert said in refused(capsys, *arguments)


def test_folders_that_are_no_causal_model_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "has no config.json" in refused(capsys, "answer", "x", "--model", str(tmp_path))
    (tmp_path / "config.json").write_text("{broken", encoding="utf-8")
    assert "could not be loaded" in refused(capsys, "answer", "x", "--model", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}), encoding="utf-8")
    assert "not a causal language model: expected a decoder such as Qwen3ForCausalLM, found BertForMaskedLM" in refused(
        capsys, "answer", "x", "--model", str(tmp_path))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEMO_MODEL / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00garbage")
    assert "could not be loaded" in refused(capsys, "answer", "x", "--model", str(tmp_path))


@pytest.mark.parametrize(("content", "said"), [
    (b"not json", 'is not JSON (Expecting value at column 1): expected a list of messages such as [{"role": "user"'),
    (b"{}", "expected a JSON list"), (b"[]", "expected a JSON list"), (b'[{"role": "user"}]', "message 1 must be"),
    (b'[{"role": "assistant", "content": "x"}]', "the last message is the assistant's"), (b"\xff\xfe", "is not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
])
def test_broken_message_files_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "m.json").write_bytes(content)
    assert said in refused(capsys, "answer", "--messages", str(tmp_path / "m.json"))


def test_any_directory_of_a_causal_model_is_served(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_tiny_model().save_pretrained(tmp_path)
    make_byte_tokenizer(None).save_pretrained(tmp_path)
    code, out, err = run(capsys, "answer", "ab", "--model", str(tmp_path), "--json", "--max-tokens", "5")
    assert code == 0 and len(json.loads(out)["tokens"]) <= 5 and json.loads(out)["model"] == str(tmp_path) and "no chat template" in err
    code, out, _ = run(capsys, "fix", "ab", "--model", str(tmp_path), "--fix", "=>z", "--max-tokens", "6", "--json", "--max-steps", "2")
    assert code in (1, 2)


def test_errors_never_carry_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "answer", "x", "--model", "./no\x1b[31mwhere\n")
    assert "\x1b" not in err and "no\\x1b[31mwhere" in err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = make_parser().format_help()
    for name in ("demo", "answer", "fix"):
        assert name in text
    assert run(capsys, "--version") == (0, f"lawf {__version__}\n", "")
    with pytest.raises(SystemExit) as end:  # argparse's own, where something else is given too
        main(["--plain", "--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"lawf {__version__}\n"


@pytest.mark.parametrize("words", [["fix", "x"], ["--plain", "sessions"], ["bench", "start"]])
def test_a_command_has_the_same_flags_where_the_others_have_none(words: list[str]) -> None:
    name = next(word for word in words if word in COMMANDS)
    assert _of(make_parser(words), name) == _of(make_parser(), name) != _of(make_parser([]), name)


def _of(parser: argparse.ArgumentParser, name: str) -> str:
    choices: Any = next(action for action in parser._actions if action.dest == "command").choices
    return str(choices[name].format_help())


def test_an_interrupted_answer_keeps_its_text_and_exits_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lawf_repl.engine import decode

    made = decode.Decoder._token

    def press_once(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(decode.Decoder, "_token", made)
        signal.raise_signal(signal.SIGINT)
        return made(self, *arguments)

    monkeypatch.setattr(decode.Decoder, "_token", press_once)
    code, out, _ = run(capsys, "answer", AUSTRALIA, "--json")
    assert code == 130 and json.loads(out)["finish"] == "interrupted" and json.loads(out)["text"] == "The"


@pytest.mark.parametrize("steps", [0, 3])
def test_an_interrupted_training_measures_no_more_than_it_has_to(steps: int, capsys: pytest.CaptureFixture[str],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    made = Session.train

    def pressed(self: Session, stop: Any) -> Any:
        """Ctrl-C comes with the first step, or after so many of them."""
        for step in made(self, stop):
            if step.step == steps:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(Session, "train", pressed)
    code, out, err = run(capsys, "fix", AUSTRALIA, "--want", RIGHT, "--neighbour", "What is the capital of Spain?", "--json")
    fix = json.loads(out)
    assert code == 130 and fix["training"]["stop_reason"] == "interrupted" and fix["training"]["steps"] == steps
    assert fix["scorecard"]["probes"]["n"] == 0 and fix["scorecard"]["locality"]["n"] == 0
    assert ("nothing was trained" in err and fix["scorecard"]["reliability"] is None) is (steps == 0)


def test_every_command_has_a_file_of_its_own_with_the_function_that_runs_it() -> None:
    commands = next(action.choices for action in make_parser(["--help"])._actions if action.dest == "command")
    assert commands
    for name in commands:
        assert callable(getattr(import_module(f"lawf_repl.verbs.{name}"), f"run_{name}")), name
