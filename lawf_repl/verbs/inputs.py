"""What commands read: prompts from text, standard input or a file, conversations from JSON, and Ctrl-C as a wish to stop."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from lawf_repl.errors import PromptError, UsageError
from lawf_repl.records import Message

MOST_BYTES = 16 * 2**20  # of a prompt file; more is a wrong path, not a prompt


def read_prompt(prompt: str | None, messages: Path | None, system: str | None) -> list[Message]:
    """The conversation that PROMPT or --messages gives. Raises UsageError, PromptError."""
    if (prompt is None) == (messages is None):
        raise UsageError("expected one prompt: PROMPT as text, - or @FILE, or --messages FILE, and not both")
    if messages is not None:
        return read_messages(messages)
    assert prompt is not None
    if prompt == "-":
        if sys.stdin is None:
            raise UsageError("PROMPT is - and there is no standard input: give the prompt as text or @FILE")
        text = _decode(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input").rstrip("\n")
    elif prompt.startswith("@"):
        text = _read(Path(prompt[1:])).rstrip("\n")
    else:
        text = prompt
    if not text.strip():
        raise PromptError("the prompt is empty: give a question as text, - or @FILE")
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def read_messages(path: Path) -> list[Message]:
    """A JSON list of {"role", "content"}. Raises UsageError naming what is wrong and where."""
    try:
        found = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is not a conversation: it is nested too deeply") from error
    if not isinstance(found, list) or not found:
        raise UsageError(f"{path}: expected a JSON list of objects with role and content, found {type(found).__name__}")
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or not all(isinstance(value, str) for value in message.values()):
            raise UsageError(f"{path}: message {number} must be an object with role and content as text, and nothing else")
    if any("\ud800" <= character <= "\udfff" for message in found for character in message["content"] + message["role"]):
        raise UsageError(f"{path}: a message has half of a surrogate pair, which is no character")
    if found[-1]["role"] == "assistant":
        raise UsageError(f"{path}: the last message is the assistant's; end with the one that is to be answered")
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _decode(file.read(MOST_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(data: bytes, name: str) -> str:
    if len(data) > MOST_BYTES:
        raise UsageError(f"{name} has more than {MOST_BYTES // 2**20} MiB: expected a prompt")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 at byte {error.start}: convert it first") from error


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is there at all and a terminal."""
    return stream is not None and stream.isatty()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output; a terminal gets it in ASCII, so that no text can steer it."""
    print(json.dumps(value, ensure_ascii=is_terminal(sys.stdout)))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes the yielded function true, so that what is there is kept; the second one raises."""
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
