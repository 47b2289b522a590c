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

from lawf_repl.conversations import MOST_BYTES, decode, read_messages, read_text
from lawf_repl.errors import PromptError, UsageError
from lawf_repl.records import Message


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
        text = decode(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input").rstrip("\n")
    elif prompt.startswith("@"):
        text = read_text(Path(prompt[1:])).rstrip("\n")
    else:
        text = prompt
    if not text.strip():
        raise PromptError("the prompt is empty: give a question as text, - or @FILE")
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is there at all and a terminal."""
    return stream is not None and stream.isatty()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output; a terminal gets it in ASCII, so that no text can steer it, and so does half a character."""
    text = json.dumps(value, ensure_ascii=is_terminal(sys.stdout))
    print(text if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text) else json.dumps(value))


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
