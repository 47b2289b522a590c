"""Prompts and conversations from files, checked line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lawf_repl.errors import UsageError
from lawf_repl.records import Message

MESSAGES = 'a list of messages such as [{"role": "user", "content": "text"}]'
PROMPTS = 'each line as text in quotes, {"prompt": "text"} or {"messages": [...]}, as the first one begins'
MOST_BYTES = 16 * 2**20  # of a file of prompts; more is a wrong path


def read_text(path: Path) -> str:
    """A whole text file. Raises UsageError where it cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            return decode(file.read(MOST_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def decode(data: bytes, name: str) -> str:
    """Bytes as text; `name` says in an error where they are from."""
    if len(data) > MOST_BYTES:
        raise UsageError(f"{name} has more than {MOST_BYTES // 2**20} MiB: expected a prompt")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 at byte {error.start}: convert it first") from error


def read_messages(path: Path) -> list[Message]:
    """A JSON list of {"role", "content"}. Raises UsageError naming what is wrong and where."""
    return check_messages(_json(read_text(path), str(path), MESSAGES), str(path))


def read_prompts(path: Path, system: str | None = None) -> list[list[Message]]:
    """Conversations from a file of prompts, one a line: plain text, or JSON Lines of "text", {"prompt": "text"} or {"messages": [...]}.

    It is JSON Lines where the first line that is not blank begins an object or a quoted text; other fields of an object are
    passed over. `system` goes before a prompt that is no whole conversation. Raises UsageError naming the line.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} has no prompts: expected one a line, as text or JSON Lines")
    as_json = lines[0][1].lstrip()[0] in '{"'
    return [_prompt(_json(line, f"{path}, line {number}", PROMPTS) if as_json else line.strip(), f"{path}, line {number}", system)
            for number, line in lines]


def check_messages(found: Any, where: str) -> list[Message]:
    """`found` if it is a conversation that can be answered. Raises UsageError."""
    if not isinstance(found, list) or not found:
        raise UsageError(f"{where}: expected a JSON list of objects with role and content, found {type(found).__name__}")
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or not all(isinstance(value, str) for value in message.values()):
            raise UsageError(f"{where}: message {number} must be an object with role and content as text, and nothing else")
    if any(_half(message["content"] + message["role"]) for message in found):
        raise UsageError(f"{where}: a message has half of a surrogate pair, which is no character")
    if found[-1]["role"] == "assistant":
        raise UsageError(f"{where}: the last message is the assistant's; end with the one that is to be answered")
    return found


def _prompt(found: Any, where: str, system: str | None) -> list[Message]:
    if isinstance(found, dict) and "messages" in found:
        return check_messages(found["messages"], where)
    text = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(text, str):
        raise UsageError(f'{where}: expected text, {{"prompt": "text"}} or {{"messages": [...]}}')
    if not text.strip():
        raise UsageError(f"{where}: the prompt is empty")
    if _half(text):
        raise UsageError(f"{where}: the prompt has half of a surrogate pair, which is no character")
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def _half(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"in line {error.lineno}" if "\n" in text.strip() else f"at column {error.colno}"
        raise UsageError(f"{where} is not JSON ({error.msg} {place}): expected {expected}") from error
    except RecursionError as error:
        raise UsageError(f"{where} is not JSON that can be read, it is nested too deeply: expected {expected}") from error
