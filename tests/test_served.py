"""Exports in the programs that serve them: what one that serves the base, hangs, or is not there makes of the verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lawf_repl.cli import main
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.export import run, served
from lawf_repl.export.trials import Trial
from lawf_repl.export.verify import Live
from lawf_repl.records import Message
from tests import stand_in_servers

RIGHT, WRONG = "The capital of Australia is Canberra.", "The capital of Australia is Sydney."
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are scripts")


@pytest.fixture(autouse=True)
def only_stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH that has what the test puts there; no server of the user's is asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: tmp_path / "none.toml")
    monkeypatch.setattr(served, "END_SECONDS", 2.0)
    return programs


def export(capsys: pytest.CaptureFixture[str], session: Path, out: Path, *more: str) -> tuple[int, str]:
    code = main(["export", str(session), str(out), *more])
    return code, capsys.readouterr().out


@pytest.fixture
def live(demo_engine: Engine) -> Live:
    """One accepted answer, as the live model gave it."""
    asked: list[Message] = [{"role": "user", "content": "What is the capital of Australia?"}]
    right, wrong = ((*demo_engine.tokenizer.encode(text), 2) for text in (RIGHT, WRONG))
    trial = Trial(asked[0]["content"], demo_engine.prompt_ids(asked), right, wrong, True, right, tuple(asked))
    return Live((trial,), Path("none"), tuple(demo_engine.end_ids), demo_engine.tokenizer.decode, "float32", "cpu", "none", None, Settings())


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("how", ["", "base"])
def test_vllm_has_to_give_the_accepted_answer_before_an_export_passes(how: str, fixed_session: Path, tmp_path: Path, only_stand_ins: Path,
                                                                     capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_servers.write(only_stand_ins, "vllm")
    monkeypatch.setenv("STAND_IN", how)
    code, said = export(capsys, fixed_session, tmp_path / "out", "--format", "vllm")
    assert (tmp_path / "out").exists() is (how == "") and code == (0 if how == "" else 1)
    if how:
        assert "FAIL  vLLM 0.99.0: 0 of 1 answers are the accepted ones, 1 of 1 base answers without the adapter; it serves the base, as if" in said
        assert f"FAIL  nothing was written to {tmp_path / 'out'}" in said and "PASS" not in said
    else:
        assert "ok    vLLM 0.99.0: 1 of 1 answers are the accepted ones, 1 of 1 base answers without the adapter\n" in said
        assert f"PASS  {tmp_path / 'out'}" in said


@pytest.mark.usefixtures("same_process")
def test_without_vllm_an_export_is_written_and_not_called_good(fixed_session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = export(capsys, fixed_session, tmp_path / "out", "--format", "vllm")
    assert code == 1 and "open  vLLM: not verified: there is no vllm" in said and "PASS" not in said and "FAIL" not in said
    assert f"NOT VERIFIED  {tmp_path / 'out'} was written" in said and (tmp_path / "out" / "adapter_config.json").is_file() and "vllm serve" in said
    code, said = export(capsys, fixed_session, tmp_path / "out", "--format", "vllm", "--force", "--json")
    found = json.loads(said)
    assert code == 1 and found["written"] is True and found["ok"] is False
    assert [one["verified"] for one in found["checks"]] == [True] * (len(found["checks"]) - 1) + [False]
    code, said = export(capsys, fixed_session, tmp_path / "again", "--format", "vllm", "--push-to-hub", "me/fix", "--base-id", "me/base", "--dry-run")
    assert code == 1 and "nothing would be uploaded: only what was verified is" in said


@pytest.mark.parametrize(("how", "line"), [
    ("crash", "vllm ended with 1 before it served: ValueError: No supported device"),
    ("sleep", "vllm did not serve within 1 s: it said nothing")])
def test_a_vllm_that_does_not_come_up_is_a_failure_in_one_line(how: str, line: str, live: Live, only_stand_ins: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_servers.write(only_stand_ins, "vllm")
    monkeypatch.setenv("STAND_IN", how)
    if how == "sleep":
        monkeypatch.setattr(served, "START_SECONDS", 1.0)
    found = served.in_vllm(live, ["serve", "none"], "fix", "base")
    assert (found.ok, found.verified, found.detail) == (False, True, line)


def test_a_vllm_that_cannot_be_started_is_no_fault_of_the_place(live: Live, only_stand_ins: Path) -> None:
    program = only_stand_ins / "vllm"  # of an environment that was moved
    program.write_text("#!/nowhere/python\n")
    program.chmod(0o755)
    found = served.in_vllm(live, ["serve", "none"], "fix", "base")
    assert not found.ok and found.verified and "vllm" in found.detail and "could not be started" in found.detail and "\n" not in found.detail


@pytest.mark.parametrize(("how", "ok", "line"), [
    ("", True, "1 of 1 answers are the accepted ones, 1 of 1 base answers without the adapter"),
    ("base", False, "0 of 1 answers are the accepted ones, 1 of 1 base answers without the adapter; it serves the base, as if there were no adapter"),
    ("crash", False, "ollama create ended with 1: Error: adapters are no longer supported"),
    ("always", False, "0 of 1 base answers without the adapter; it serves the adapter where the base was asked for"),
    ("cut", False, "/api/chat did not answer as it should: IncompleteRead"),
    ("garbled", False, "/api/chat did not answer as it should: what?"),
    ("shape", False, "its server answered in another form than its API has (TypeError: "),
    ("drip", False, "/api/chat did not answer within 1 s"),
    ("refuse", False, "/api/chat answered 500"), ("hang", False, "/api/chat did not answer within 1 s")])
def test_ollama_is_asked_for_real_and_leaves_nothing(how: str, ok: bool, line: str, live: Live, tmp_path: Path, only_stand_ins: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_servers.write(only_stand_ins, "ollama")
    monkeypatch.setenv("STAND_IN", how)
    monkeypatch.setenv("STAND_IN_ANSWERS", json.dumps({"with": RIGHT, "without": WRONG}))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "of the user"))
    if how in ("hang", "drip"):
        monkeypatch.setattr(served, "ASK_SECONDS", 1.0)
        monkeypatch.setattr(served, "said", lambda *arguments, **more: Path(os.environ["OLLAMA_MODELS"]))  # making the models is no part of it
    for name in ("base.gguf", "lora.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "Modelfile").write_text("FROM ./base.gguf\nADAPTER ./lora.gguf\n")
    here = sorted(path.name for path in tmp_path.iterdir())
    found = served.in_ollama(live, tmp_path)
    assert found.ok is ok and found.verified and line in found.detail and "\n" not in found.detail
    assert sorted(path.name for path in tmp_path.iterdir()) == here and not (tmp_path / "of the user").exists()
    assert found.what == ("Ollama 0.99.0" if how in ("", "base", "always") else "Ollama")


def test_without_ollama_nothing_is_known(live: Live, tmp_path: Path) -> None:
    found = served.in_ollama(live, tmp_path)
    assert not found.ok and not found.verified and "there is no ollama" in found.detail


def test_a_server_and_its_children_are_gone_when_the_block_is_left(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = ("import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
               f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); "
               "from tests.stand_in_servers import serve; serve(int(sys.argv[1]), lambda path, body: {})")
    port = served.free_port()
    more: dict[str, Any] = {"env": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    with pytest.raises(KeyboardInterrupt), served.server([sys.executable, "-c", program, str(port)], f"http://127.0.0.1:{port}/", **more):
        raise KeyboardInterrupt
    for pid in pids.read_text().split():
        state = subprocess.run(["/bin/ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout.strip()
        assert state[:1] in ("", "Z"), (pid, state)  # gone, or only not yet waited for


@pytest.mark.parametrize(("answer", "same"), [((RIGHT, True), True), ((" " + RIGHT, True), True), ((RIGHT, False), False), ((WRONG, True), False)])
def test_a_served_answer_has_to_read_and_to_end_the_same(answer: tuple[str, bool], same: bool, live: Live) -> None:
    assert served._same(live, answer, live.trials[0].accepted_ids) is same
    assert run.BASE_NAME != "fix"
