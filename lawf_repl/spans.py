"""Ids and text: what each token shows, where a text position lies, and which ids a typed fix becomes.

The ids are the truth. Nothing here decodes ids and encodes them again: texts are derived from ids, and a typed text is
encoded behind ids that stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from lawf_repl.errors import FixError
from lawf_repl.records import Token

REPLACEMENT = "\ufffd"  # what decoders show for bytes that are no whole character
TAIL = 8                # tokens of context that decide how a text behind them is split and shown


def bytes_name(raw: bytes) -> str:
    """How a token is written that has no text of its own, being only part of a character."""
    return f"0x{raw.hex()}"


class Tokenizer(Protocol):
    """What the core needs of a tokenizer. Both ways are literal: no special tokens are added, parsed, skipped or cleaned up.

    Decoding more ids may only complete a broken character at the end of the text, never change what stands before it.
    """

    def encode(self, text: str) -> list[int]: ...
    def spellings(self, text: str) -> Iterator[list[int]]:
        """Other ways to write a text, best first, for where `encode` normalises it; some may not be exact."""
    def decode(self, ids: Sequence[int]) -> str: ...
    def is_special(self, id_: int) -> bool: ...


class Shown(NamedTuple):
    """What one token shows."""

    text: str
    partial: bool  # it ends inside a character: the next token goes on with it


class TextStream:
    """What tokens show, as they come: a token's text is known once it is sure whether it ends inside a character.

    The texts given, with those of `flush()` behind them, join to the decoded ids.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(context[-TAIL:])
        self._group: list[int] = []  # tokens since the last whole character
        self._text = ""              # what they show so far

    def push(self, id_: int) -> list[Shown]:
        """What is known now: nothing, or the tokens that were open, in their order, up to this one."""
        special = self._tokenizer.is_special(id_)
        known: list[Shown] = []
        if self._group:
            longer = text_behind(self._tokenizer, self._context, [*self._group, id_])
            # a special token completes no character, and text that only follows did not complete this one: it is broken
            if special or (len(longer) > len(self._text) and longer.startswith(self._text)):
                known = self.flush()
        self._group.append(id_)
        self._text = text_behind(self._tokenizer, self._context, self._group)
        if self._text.endswith(REPLACEMENT) and not special:
            return known
        return known + self.flush()

    def flush(self) -> list[Shown]:
        """What the open tokens show where the text ends or breaks; empty if there are none."""
        if not self._group:
            return []
        known = [Shown("", True)] * (len(self._group) - 1) + [Shown(self._text, False)]
        self._context = (self._context + self._group)[-TAIL:]
        self._group, self._text = [], ""
        return known


def text_behind(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `context`."""
    before = tokenizer.decode(list(context))
    whole = tokenizer.decode([*context, *ids])
    if whole.startswith(before):
        return whole[len(before):]
    # The context ends inside a character that `ids` complete: everything from there on is theirs.
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole)))
    return whole[shared:]


def token_texts(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[Shown]:
    """What each id shows; the texts join to the decoded ids."""
    stream = TextStream(tokenizer, context)
    return [shown for id_ in ids for shown in stream.push(id_)] + stream.flush()


def position_of(tokens: Sequence[Token], offset: int) -> tuple[int, int]:
    """(position, characters into it) of the token that shows character `offset` of the joined texts.

    The first token of a group that makes up one character stands for the group. `offset` at the very end gives
    (len(tokens), 0).
    """
    at = 0
    for position, token in enumerate(tokens):
        if offset < at + len(token.text):
            return group_start(tokens, position), offset - at
        at += len(token.text)
    return len(tokens), offset - at


def group_start(tokens: Sequence[Token], position: int) -> int:
    """The first token of the group of tokens that share one character with the token at `position`."""
    while position > 0 and tokens[position - 1].partial:
        position -= 1
    return position


def encode_behind(tokenizer: Tokenizer, prefix: Sequence[int], text: str) -> list[int]:
    """Ids for `text` such that prefix + ids decodes to the prefix's text followed by exactly `text`.

    The way the tokenizer itself would split the joined text comes first; where that would change the prefix (the fix
    merges with its left neighbour), the text is split on its own, then without Unicode normalisation, then character by
    character. Raises FixError if no way gives exactly this text.
    """
    tail = list(prefix[-TAIL:])
    for ids in _encodings(tokenizer, tail, text):
        if ids and text_behind(tokenizer, tail, ids) == text and not any(tokenizer.is_special(id_) for id_ in ids):
            return ids
    raise FixError(f"this tokenizer cannot write {text[:40]!r} exactly here; type it in another form")


def _encodings(tokenizer: Tokenizer, tail: list[int], text: str) -> Iterator[list[int]]:
    for start in range(len(tail)):
        shown = tokenizer.decode(tail[start:])
        if shown.startswith(REPLACEMENT) or any(tokenizer.is_special(id_) for id_ in tail[start:]):
            continue
        joined = tokenizer.encode(shown + text)
        kept = len(tail) - start
        if joined[:kept] == tail[start:]:
            yield joined[kept:]
    yield tokenizer.encode(text)
    for lead in ("\n", "a", "."):  # a tokenizer that puts a space before the first word does so before the lead
        first, joined = tokenizer.encode(lead), tokenizer.encode(lead + text)
        if joined[:len(first)] == first:
            yield joined[len(first):]
    yield tokenizer.encode(f" {text}")  # at the very start of a text such a tokenizer drops a space again
    yield from tokenizer.spellings(text)


# A word as a careful user would retype it: white space before it, then letters and digits, or one character of a script
# that writes no spaces, or a run of marks.
_ONE = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua000-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
_WORD = re.compile(rf"\s*(?:{_ONE}|(?:(?!{_ONE})\w)+|[^\w\s]+)|\s+", re.UNICODE)


def first_word(text: str) -> str:
    """The part of `text` that one fix replaces: up to the end of its first word."""
    match = _WORD.match(text)
    return match.group() if match else text


def lead_of(text: str) -> str:
    """The white space at the start of a token's text, which a fix typed over it keeps by default."""
    return text[:len(text) - len(text.lstrip(" \t"))]
