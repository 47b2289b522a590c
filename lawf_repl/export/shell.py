"""Commands that can be copied: quoted for a shell, and safe to show, whatever stands in a prompt."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence

from lawf_repl.records import Message

LONGEST = 600  # characters of a prompt that still make a command
ANY = "YOUR PROMPT"


def quote(text: str) -> str:
    """`text` as one word of bash or zsh; what a terminal would obey, hide or break a line at is written as an escape ($'...')."""
    if all(_plain(character) for character in text):
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _plain(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in "LNPS"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    code = ord(character)
    return character if _plain(character) else "\\n" if character == "\n" else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def asked(messages: Sequence[Message] | None) -> tuple[str | None, str]:
    """(system message, question) that a command can give; a longer conversation, or a long text, becomes a place to fill in."""
    if not messages or len(messages) > 2 or messages[-1]["role"] != "user" or sum(len(message["content"]) for message in messages) > LONGEST:
        return None, ANY
    if len(messages) == 2 and messages[0]["role"] != "system":
        return None, ANY
    return (messages[0]["content"] if len(messages) == 2 else None), messages[-1]["content"]
