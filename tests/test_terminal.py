"""The REPL in a real pseudo-terminal, from the question to the trained adapter, read off the screen as a user would."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

COLUMNS, LINES = 80, 24


class Screen:
    """A child process with a terminal of 80x24 that can be read."""

    def __init__(self, *arguments: str, home: Path) -> None:
        environment = os.environ | {"TERM": "xterm-256color", "HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)  # the child runs elsewhere
        environment |= {"PROMPT_TOOLKIT_NO_CPR": "1"}  # pyte answers no cursor position requests
        environment.pop("NO_COLOR", None)
        self.child = pexpect.spawn(sys.executable, ["-m", "lawf_repl", *arguments], dimensions=(LINES, COLUMNS), env=environment, cwd=home)
        self.terminal = pyte.HistoryScreen(COLUMNS, LINES, history=2000)
        self.stream = pyte.ByteStream(self.terminal)

    def text(self) -> str:
        history = ["".join(line[column].data for column in range(COLUMNS)) for line in self.terminal.history.top]
        return "\n".join(line.rstrip() for line in [*history, *self.terminal.display])

    def wait(self, ready: Callable[[str], object], seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                break
            if ready(self.text()):
                return self.text()
        if ready(self.text()):
            return self.text()
        raise AssertionError(f"not seen on the screen:\n{self.text()}")

    def see(self, pattern: str, seconds: float = 120) -> str:
        return self.wait(lambda text: re.search(pattern, text), seconds)

    def press(self, keys: str) -> None:
        self.child.send(keys.encode())


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Screen]:
    screen = Screen("demo", home=tmp_path)
    yield screen
    screen.child.close(force=True)


def test_a_correction_by_hand_from_the_question_to_the_trained_adapter(demo: Screen, tmp_path: Path) -> None:
    demo.see(r"› What is the capital of Australia\?")  # the prompt stands before the model is loaded
    demo.press("\r")
    demo.see(r"The capital of Australia is Sydney\.")
    demo.see(r"keys")  # the answer view is open, on the least sure token: Sydney
    demo.press("c")
    demo.press("Canberra")
    demo.see(r"Canberra")
    demo.press("\r")
    demo.see(r"The capital of Australia is Canberra\.")
    time.sleep(0.5)
    demo.press("a")
    demo.see(r"accepted: ·Sydney → ·Can")
    demo.press("t")
    text = demo.see(r"Fixed: the prompt now gives")
    assert "reliability" in text and "drift" in text and "\ufffd" not in text
    demo.press("/adapter save lora\r")
    demo.wait(lambda _: (tmp_path / "lora" / "adapter_model.safetensors").is_file())
    demo.press("/export peft served\r")
    demo.see(r"PASS  .*served")
    assert (tmp_path / "served" / "lawf.json").is_file()
    demo.press("/save one\r")
    demo.see(r"session saved in")
    saved = next(tmp_path.rglob("one.jsonl"))
    assert saved.parent.name == "sessions" and list(saved.parent.rglob("adapter_model.safetensors"))
    demo.press("/quit\r")
    demo.see(r"bye")
    demo.child.wait()
    assert demo.child.exitstatus == 0


def test_ctrl_c_and_ctrl_d_leave_politely(demo: Screen) -> None:
    demo.see(r"› What is the capital of Australia\?")
    demo.press("\x03")
    demo.see(r"Ctrl-C again or Ctrl-D leaves")
    demo.press("\x04")
    demo.see(r"bye")
    demo.child.wait()
    assert demo.child.exitstatus == 0


def test_a_model_that_is_not_there_ends_the_repl_with_one_line(tmp_path: Path) -> None:
    screen = Screen("--model", "./nowhere", home=tmp_path)
    text = screen.see(r"the folder does not exist")
    assert "Traceback" not in text
    screen.wait(lambda _: not screen.child.isalive(), 30)
    screen.child.close()
    assert screen.child.exitstatus == 2
