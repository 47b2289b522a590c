"""The loop with a session that needs no model: ask, fix, accept, train, through real key bytes."""

from __future__ import annotations

import io
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from rich.text import Text

from lawf_repl.errors import ModelError
from lawf_repl.records import Check, Progress, Token
from lawf_repl.session import Session
from lawf_repl.ui import work
from lawf_repl.ui.app import Options, Repl, run_repl
from lawf_repl.ui.commands import COMMANDS
from lawf_repl.ui.keys import Keymap
from lawf_repl.ui.line import InputLine, Status
from lawf_repl.ui.port import Action, ActionKind, SessionPort
from lawf_repl.ui.terminal import Loader
from lawf_repl.ui.theme import Theme
from tests.fake_session import FakeSession


def run(pipe: PipeInput, keys: str, session: FakeSession | None = None, *, plain: bool = False, first: str | None = None,
        load: Callable[[], FakeSession] | None = None, options: Options | None = None, width: int = 100) -> tuple[int, str]:
    """A whole run of the loop on the given bytes; exit code and all that was printed."""
    file = io.StringIO()
    fake = session or FakeSession()
    with create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        code = run_repl(lambda report: load() if load else fake, first_prompt=first, intro="welcome" if first else None, model_name="tiny",
                        options=options or Options(plain=plain, history=False),
                        console=Console(file=file, width=width, color_system=None, highlight=False))
    return code, file.getvalue()


@pytest.fixture
def pipe() -> Iterator[PipeInput]:
    with create_pipe_input() as created:
        yield created


def test_ask_fix_accept_train(pipe: PipeInput) -> None:
    session = FakeSession()
    code, shown = run(pipe, "What is the capital of Australia?\rcCanberra\rat/save mine.jsonl\r\x04", session)
    assert code == 0
    assert session.calls == ["ask What is the capital of Australia?", "replace 5  Canberra", "accept", "train", "rerun", "name mine.jsonl"]
    for expected in ("at 5  ·Sydney → ·Canberra", "The capital of Australia is Canberra.", "base says", "converged", "[-Sydney-]",
                     "{+Canberra+}",
                     "not measured", "Fixed: the prompt now gives the accepted answer by itself", "session saved in mine.jsonl", "bye"):
        assert expected in shown, expected
    assert "/train trains" not in shown, "no advice to do what is being done"
    places = [shown.index(word) for word in ("base says", "training", "[-Sydney-]", "reliability", "Fixed:")]
    assert places == sorted(places)


def test_another_answer_to_an_accepted_prompt_says_whose_place_it_takes(pipe: PipeInput) -> None:
    question, said = "What is the capital of Australia?\r", "in place of the answer to this prompt accepted before: "
    session = FakeSession()
    _, shown = run(pipe, f"{question}cCanberra\raq/new\r{question}cMelbourne\raq/cases\r/quit\r", session)
    assert shown.count(said) == 1 and f"{said}The capital of Australia is Canberra." in shown and len(session.cases) == 1
    assert shown.index("is Melbourne.") < shown.index(said), "below the answer that was accepted"
    _, shown = run(pipe, f"{question}cCanberra\raq/new\r{question}cCanberra\raq/accept\r/new\rWho?\rcNo\raq/quit\r", FakeSession())
    assert said not in shown, "the same answer again, and the answer to another prompt, take nothing away"


def test_a_command_typed_in_the_view_is_a_command(pipe: PipeInput) -> None:
    session = FakeSession()
    _, shown = run(pipe, "What is the capital of Australia?\rcCanberra\ra/train\r/undo\r/redo\r/save mine.jsonl\r\r/quit\r\x04\x04\x04", session)
    assert session.calls == ["ask What is the capital of Australia?", "replace 5  Canberra", "accept", "train", "rerun", "name mine.jsonl"]
    assert "bye" in shown


def test_t_accepts_first_and_undo_redo_pick_delete_end_and_go_on_work(pipe: PipeInput) -> None:
    session = FakeSession()
    _, shown = run(pipe, "What is the capital of Australia?\r\r2u\x12" "t/edit\r0xq/edit\r$+ Yes\rq/quit\r", session)
    assert session.calls[1:5] == ["replace 5  Canberra", "accept", "train", "rerun"]
    assert session.calls[5:] == ["delete 0 ", "go_on 6  Yes"]
    assert "deleted The" in shown


def test_what_the_comparison_found_wrong_is_offered_and_mended(pipe: PipeInput) -> None:
    session = FakeSession()
    session.missed = (Check("Australia's [b]capital?", "The capital of Australia is Canberra.", "Sydney.\x1b[2J"),)
    _, shown = run(pipe, "What is the capital of Australia?\rcCanberra\rat/mend\r/quit\r", session)
    assert session.calls[-1] == "mend"
    assert "/mend and /train: make the 1 wrong paraphrase cases of their own, and train again." in shown
    assert "a case now: Australia's [b]capital?" in shown and "/train trains all of it" in shown and "\x1b[2J" not in shown
    session = FakeSession()
    _, shown = run(pipe, "What is the capital of Australia?\rcCanberra\rat/mend\r/hold 你好\r/hold\r/quit\r", session)
    assert "/mend and" not in shown and "nothing to mend" in shown and session.calls[-1] == "hold 你好" and "expected /hold PROMPT" in shown


def test_ctrl_c_while_the_base_still_answers_trains_nothing(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession()

    def interrupted(stop: Callable[[], bool]) -> Iterator[Progress]:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        yield Progress("answers", 0, 64)

    monkeypatch.setattr(session, "prepare", interrupted)
    _, shown = run(pipe, "What is the capital of Australia?\rcCanberra\rat/quit\r", session)
    assert "train" not in session.calls and "nothing was trained; /train goes on" in shown and "bye" in shown


def test_an_answer_that_stands_is_told_once(pipe: PipeInput) -> None:
    told: list[int] = []
    session = FakeSession()
    with create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("one\rqtwo\rq\x04")
        run_repl(lambda report: session, first_prompt=None, intro=None, options=Options(history=False),
                 console=Console(file=io.StringIO(), width=100, color_system=None), answered=lambda: told.append(len(session.nodes)))
    assert told == [1] and session.calls == ["ask one", "ask two"]


def test_first_prompt_stands_ready(pipe: PipeInput) -> None:
    session = FakeSession()
    code, shown = run(pipe, "\rq\x04", session, first="你是谁？")
    assert code == 0 and session.calls == ["ask 你是谁？"] and shown.startswith("welcome")
    assert "我是千问" in shown and "⟨im_end⟩" in shown


def test_plain_needs_no_cursor(pipe: PipeInput) -> None:
    session = FakeSession()
    keys = "What is the capital of Australia?\r/fix 5 Canberra\r/tokens\r/alternatives 5\r/accept\r/train\r/quit\r"
    code, shown = run(pipe, keys, session, plain=True)
    assert code == 0 and session.calls[1:] == ["replace 5  Canberra", "accept", "train", "rerun"]
    assert "The capital of Australia is Canberra." in shown.split("›")[0]
    assert "\x1b" not in shown and "/fix POSITION TEXT" in shown and "·Canberra" in shown and "Fixed:" in shown and "╭" not in shown


def test_plain_says_once_what_stands_and_where_it_is_unsure(pipe: PipeInput) -> None:
    keys = "What is the capital of Australia?\r/fix 5 Canberra\r/undo\r/redo\r/edit\r/accept\r/quit\r"
    _, shown = run(pipe, keys, FakeSession(), plain=True)
    assert shown.count("The capital of Australia is Sydney.") == 1 + 1, "streamed, and again where undo leads"
    assert shown.count("The capital of Australia is Canberra.") == 1 + 1 + 1, "streamed, redone, and where it is asked for"
    assert "·Canberra 30.0% at 5" in shown and shown.count("/fix POSITION TEXT") == 1 and "answer view" not in shown


def test_an_unfinished_answer_goes_on(pipe: PipeInput) -> None:
    session = FakeSession()
    session.interrupt_at = 5
    _, shown = run(pipe, "one two three four five six seven eight nine ten eleven twelve\r/append\r/quit\r", session, plain=True)
    assert "stopped before its end: /append goes on" in shown and session.calls[-1].startswith("go_on")


def test_every_command_can_be_called_at_any_time(pipe: PipeInput) -> None:
    lines = """/help|/help train|/edit|/tokens|/alternatives 0|/fix 0 x|/pick 0 1|/delete 0|/end 0|/append x|/undo|/redo
        |/tree|/goto|/goto 0|/goto 99|/cases|/cases drop 9|/cases x|/anchors|/accept
        |/train|/compare|/paraphrase|/paraphrase p|/neighbour n|/confidence 0.5|/confidence x|/adapter|/adapter on|/adapter off
        |/adapter reset|/adapter save d|/save|/system be brief|/system|/set|/set a b|/set a|/model|/t|/nothing|//usr|/fix 99 x
        |/alternatives 99|/delete 0 x|/pick 0 77|/anchors|/accept""".split("|")
    code, shown = run(pipe, "".join(line.strip() + "\r" for line in lines) + "\x04", plain=True)
    assert code == 0
    for expected in ("there is no answer yet", "ambiguous: /tokens, /tree, /train", "no command /nothing", "there is no adapter yet",
                     "confidence of the next corrections: 0.5", "no setting a", "demo on cpu in float32", "nothing was corrected",
                     "Traceback"):
        assert (expected in shown) == (expected != "Traceback"), expected


def test_a_model_that_cannot_be_loaded_ends_the_loop(pipe: PipeInput) -> None:
    def load() -> FakeSession:
        time.sleep(0.2)
        raise ModelError("no such model: /nowhere")

    code, shown = run(pipe, "", load=load)
    assert code == 2 and "lawf: no such model: /nowhere" in shown and "Traceback" not in shown


def test_the_first_question_waits_for_the_model(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    session, waited_for = FakeSession(), threading.Event()
    wait = Loader.wait

    def noticed(loader: Loader, seconds: float) -> None:
        waited_for.set()
        wait(loader, seconds)

    def load() -> FakeSession:
        assert waited_for.wait(30), "loading ends only after the loop has begun to wait for it"
        return session

    monkeypatch.setattr(Loader, "wait", noticed)
    code, shown = run(pipe, "hello\rq\x04", load=load)
    assert code == 0 and session.calls == ["ask hello"]
    assert "loading tiny" in shown


def test_a_session_that_goes_on_is_told_and_counted_and_its_last_answer_stays_out_of_a_training(pipe: PipeInput,
                                                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    session, counts, read = FakeSession(), list[int](), InputLine.read
    list(session.follow_up("What is the capital of Australia?", lambda: False))
    list(session.replace(5, " Canberra", lambda: False))
    session.accept()
    polled = iter([False, False, True])
    list(session.follow_up("Peru has one", lambda: next(polled)))  # as where Ctrl-C stopped it
    assert session.node is not None and session.node.completion.text == "Peru has"

    def seen(line: InputLine, default: str) -> str:
        text = read(line, default)
        counts.append(line.status.anchors)
        return text

    monkeypatch.setattr(InputLine, "read", seen)
    session.place = Path("mine.jsonl")
    _, shown = run(pipe, "/cases\r/train\r/quit\r", session)
    assert shown.count("opened mine.jsonl: 1 answer, 1 accepted") == 1 and counts[1] == 1, "counted before anything was done"
    assert "converged" in shown and "Peru" not in shown[:shown.index("converged")], "nothing of the answer that was stopped"


def test_undo_and_redo_of_a_training_say_which_adapter_is_in_place(pipe: PipeInput, demo_session: Session) -> None:
    for name, value in (("variations", "0"), ("max_steps", "2")):
        demo_session.set_setting(name, value)
    list(demo_session.ask("What is the capital of Australia?"))
    list(demo_session.fix("Sydney", "Canberra"))
    demo_session.accept()
    list(demo_session.train())
    demo_session.set_setting("max_steps", "1")
    list(demo_session.train())
    port = cast(SessionPort, demo_session)
    moves: tuple[ActionKind, ...] = ("undo", "undo", "redo", "redo")
    with create_app_session(input=pipe, output=DummyOutput()):
        repl = Repl(Loader(lambda report: port), Console(file=io.StringIO()), Theme(), Status("tiny"), Options(history=False), {}, tuple,
                    lambda: None)
        assert [repl.apply(port, Action(kind)) for kind in moves] == [
            "the training is undone: the adapter of the training before it (2 steps) is on", "the training is undone: no adapter is on",
            "the training is back: its adapter (2 steps) is on", "the training is back: its adapter (1 step) is on"]
        first = next(node.id for node in demo_session.nodes if node.training is not None)
        assert [repl.apply(port, Action("goto", node)) for node in (first, first, 0)] == [
            "as it was then: the adapter of a training (2 steps) is on", "", "as it was then: no adapter is on"]


def test_control_c_clears_and_twice_leaves(pipe: PipeInput) -> None:
    code, shown = run(pipe, "abc\x03\x03")
    assert code == 0 and "Ctrl-C again" in shown and shown.rstrip().endswith("bye")


def test_control_c_that_takes_a_text_away_does_not_count_as_leaving(pipe: PipeInput) -> None:
    session = FakeSession()
    code, shown = run(pipe, "abc\x03def\x03ghi\x03one\rq\x04", session)
    assert code == 0 and session.calls == ["ask one"] and shown.count("bye") == 1


def test_a_wait_for_the_model_that_is_interrupted_gives_the_line_back(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    session, interrupted = FakeSession(), threading.Event()
    wait = Loader.wait

    def noticed(loader: Loader, seconds: float) -> None:
        if not interrupted.is_set():
            signal.raise_signal(signal.SIGINT)
            interrupted.set()
        wait(loader, seconds)

    def load() -> FakeSession:
        assert interrupted.wait(30)
        time.sleep(0.2)
        return session

    monkeypatch.setattr(Loader, "wait", noticed)
    _, shown = run(pipe, "hello\r\rq\x04", load=load)
    assert "still loading; enter waits for it again" in shown and session.calls == ["ask hello"]


def test_anchors_are_counted_once_wherever_one_goes(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    session, counts = FakeSession(), []
    count = Repl._count

    def counted(repl: Repl, session: Any) -> None:
        count(repl, session)
        counts.append(repl.status.anchors)

    monkeypatch.setattr(Repl, "_count", counted)
    run(pipe, "What is the capital of Australia?\rcCanberra\raq/goto 0\rq/goto 1\rq/goto 0\rcPerth\rq/quit\r", session)
    assert len(session.cases) == 1 and len(session.anchors()) == 1, "another correction of the same answer would take the place of the accepted one"
    assert counts[0] == 0 and set(counts[1:]) == {1}


def test_control_c_keeps_what_was_generated(pipe: PipeInput) -> None:
    session = FakeSession()
    session.interrupt_at = 5
    code, shown = run(pipe, "one two three four five six seven eight nine ten eleven twelve\rq\x04", session)
    assert code == 0 and session.node is not None and session.node.completion.finish == "interrupted"
    assert "one two" in shown and "twelve" not in shown


@pytest.mark.parametrize(("answer", "kept", "compared"), [("\r", True, True), ("d\r", False, False), ("\x03", True, False)])
def test_control_c_in_training_asks_what_to_keep_and_twice_goes_to_the_prompt(pipe: PipeInput, answer: str, kept: bool, compared: bool) -> None:
    session = FakeSession(steps=200)
    list(session.follow_up("What is the capital of Australia?", lambda: False))
    list(session.replace(5, " Canberra", lambda: False))
    session.accept()
    session.interrupt_at = 9
    code, shown = run(pipe, f"/train\r{answer}\x04", session)
    assert code == 0 and "interrupted" in shown and session.adapter_on == kept
    assert ("discarded" in shown) != kept and ("rerun" in session.calls) == compared and ("kept: /compare" in shown) == (kept and not compared)


def test_history_is_private(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lawf_repl.ui.terminal.user_state_dir", lambda name: str(tmp_path / name))
    run(pipe, "/model\r\x04", options=Options())
    path = tmp_path / "lawf" / "history"
    assert "/model" in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    run(pipe, "/help\r\x04", options=Options(history=False))
    assert not path.exists()


def test_messages_with_terminal_codes_are_made_safe(pipe: PipeInput) -> None:
    _, shown = run(pipe, "a\x1b[200~\x1b]0;x\x07[bold]\u202e\x1b[201~b\rq\x04")
    assert "\x1b" not in shown and "\u202e" not in shown and "[bold]" in shown


def test_the_conversation_goes_on_until_new(pipe: PipeInput) -> None:
    session = FakeSession()
    code, shown = run(pipe, "one\rqtwo\rq/new\rthree\rq\x04", session)
    assert code == 0 and session.calls == ["ask one", "ask two", "new", "ask three"] and session.turns == 1
    assert "the next prompt starts a new conversation" in shown


def test_any_prompt_is_compared_and_probes_are_added(pipe: PipeInput) -> None:
    session = FakeSession()
    keys = "/compare x\rWhat is the capital of Australia?\rcCanberra\rat/compare Australia?\r/compare [b]other\r/probe 你好\r/probe\r\x04"
    _, shown = run(pipe, keys, session)
    assert session.calls[-3:] == ["both Australia?", "both [b]other", "probe 你好"]
    for expected in ("there is no adapter to compare", "The adapter changes this answer.", "The same answer, token for token.", "[b]other",
                     "expected /probe PROMPT"):
        assert expected in shown, expected


def test_until_the_first_token_a_spinner_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True, color_system="truecolor")

    def tokens(stop: Callable[[], bool]) -> Iterator[Token]:
        seen("reading the prompt")
        yield Token(1, "Hello", 0.3, 0, 1.0)
        seen("Hello")

    def seen(text: str) -> None:
        end = time.monotonic() + 30
        while text not in file.getvalue():
            assert time.monotonic() < end, text
            time.sleep(0.01)

    work.stream(tokens, (), console, Theme())
    assert re.search("\x1b\\[[0-9;]*mHello", file.getvalue()), "tokens come in colour"


def test_a_long_correction_stays_on_its_line(pipe: PipeInput) -> None:
    _, shown = run(pipe, "What is the capital of Australia?\rc" + "Canberra " * 9 + "\rq/set confidence 0.5\r/quit\r", width=44)
    line = next(line for line in shown.splitlines() if "✎" in line)
    after = shown.splitlines()[shown.splitlines().index(line) + 1]
    assert line.endswith("…") and after.startswith("  The capital"), shown


def test_nothing_to_train_says_so_and_prints_no_answer(pipe: PipeInput) -> None:
    session = FakeSession()
    _, shown = run(pipe, "one two\rt\x03/quit\r", session)
    assert "train" not in session.calls and shown.count("one two") == 1


def test_own_keys_are_used_in_the_view(pipe: PipeInput) -> None:
    session = FakeSession()
    options = Options(history=False, keys=Keymap({"fix": "f2", "accept": "z", "train": "f3"}))
    run(pipe, "What is the capital of Australia?\r\x1bOQCanberra\rz\x1bOR/quit\r", session, options=options)
    assert session.calls[1:4] == ["replace 5  Canberra", "accept", "train"]


def test_export_runs_beside_the_loop_and_is_stopped_by_ctrl_c(pipe: PipeInput, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session, commands = FakeSession(), []
    real = subprocess.Popen
    program = ["import sys; print('ok  \\x1b[2J', sys.argv[1]); print('PASS  there'); print('  ' + 'x' * 200)", "import time; time.sleep(60)"]

    def started(command: list[str], **keywords: Any) -> Any:
        commands.append(command)
        if len(commands) == 2:
            signal.raise_signal(signal.SIGINT)
        return real([sys.executable, "-c", program[len(commands) - 1], command[command.index("export") + 1]], **keywords)

    monkeypatch.setattr("lawf_repl.ui.exporting.subprocess.Popen", started)
    session.adapter_on = session.has_adapter = True
    _, shown = run(pipe, f"/export peft {tmp_path}/out\r/export\r/export zip x\r/quit\r", session)
    assert commands[0][-5] == "export" and commands[0][-3:] == [f"{tmp_path}/out", "--format", "peft"] and session.calls[-1] == "export peft True"
    assert "x" * 200 in shown, "a command is printed as one line, to be copied"
    assert "PASS  there" in shown and "this session" in shown and "\x1b[2J" not in shown and shown.count("expected /export peft|merged") == 2
    with create_pipe_input() as other:
        _, shown = run(other, f"/export vllm {tmp_path}/out\r/quit\r", session)
    assert "interrupted: nothing was written" in shown and "bye" in shown and session.calls[-1].startswith("save ")
    session.has_adapter = False
    with create_pipe_input() as third:
        assert "there is no adapter to export" in run(third, "/export peft x\r/quit\r", session)[1]


def test_no_input_of_any_kind_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random lines, commands and keys, in the line and in the view as they come, until the terminal is closed."""
    monkeypatch.setattr("lawf_repl.ui.exporting.export", lambda *arguments: True)
    chance = random.Random(3)
    words = [*(f"/{command.name}" for command in COMMANDS if command.name != "quit"), "//x", "/", "/nothing", "1", "5 x", "-1", "on", "reset",
             "save d", "What is the capital of Australia?", "你是谁？", "[b]", "\u202e", "seed 3", "drop 1", "9" * 30, "0.5"]
    keys = ["\x1b", "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1bOS", "\x12", "\x03", "\t", "\r", "\n", "\x1b\r", "\x7f", "\x15", "\x17",
            "\x01", "q", "c", "x", "e", "+", "u", "a", "t", "n", "?", "\x1b[200~a\r\nb\x1b[201~", "\x00", "\x1b[99~", "\x1b]11;rgb:0/0/0\x07"]
    for _ in range(30):
        parts = [chance.choice(keys) if chance.random() < 0.6 else " ".join(chance.sample(words, chance.randrange(1, 3))) + "\r" for _ in range(25)]
        session = FakeSession(steps=2)
        with create_pipe_input() as pipe:
            code, shown = run(pipe, "".join(parts) + "\x03" * 6 + "\x04" * 3, session)
        assert code == 0 and "Traceback" not in shown and "\x1b" not in shown and shown.rstrip().endswith("bye"), parts


def test_an_opened_session_counts_each_anchor_once(pipe: PipeInput) -> None:
    opened = FakeSession()
    for _ in opened.follow_up("What is the capital of Australia?", lambda: False):
        pass
    for _ in opened.replace(5, " Canberra", lambda: False):
        pass
    opened.accept()
    assert len(opened.anchors()) == 1
    with create_app_session(input=pipe, output=DummyOutput()):
        repl = Repl(Loader(lambda report: FakeSession()), Console(file=io.StringIO()), Theme(), Status("tiny"), Options(history=False),
                    {"load": lambda session, argument, stop, theme: (opened, Text("opened"))}, lambda: (), lambda: None)
        repl._command(FakeSession(), "load", "other")
    assert repl.loader.session is opened and repl.status.anchors == 1
