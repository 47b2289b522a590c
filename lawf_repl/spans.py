"""Ids and text: what each token shows, where a text position lies, and which ids a typed fix becomes.

The ids are the truth. Nothing here decodes ids and encodes them again: texts are derived from ids, and a typed text is
encoded behind ids that stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from lawf_repl.errors import FixError

REPLACEMENT = "\ufffd"  # what decoders show for bytes that are no whole character
TAIL = 8                # tokens of context that decide how a text behind them is split and shown


class Tokenizer(Protocol):
    """What the core needs of a tokenizer. Both ways are literal: no special tokens are added, parsed, skipped or cleaned up."""

    def encode(self, text: str) -> list[int]: ...
    def encode_unnormalized(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def is_special(self, id_: int) -> bool: ...


class TextStream:
    """Texts of tokens as they come. A token that ends inside a character gives "", the one that completes it the character.

    The texts given so far, and `flush()` behind them, join to the decoded ids.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(context[-TAIL:])
        self._group: list[int] = []  # tokens since the last whole character

    def push(self, id_: int) -> str:
        self._group.append(id_)
        text = self._group_text()
        if text.endswith(REPLACEMENT) and not self._tokenizer.is_special(id_):
            return ""
        self._context = (self._context + self._group)[-TAIL:]
        self._group = []
        return text

    def prime(self, ids: Sequence[int]) -> None:
        """Take `ids` as tokens given already, the last of which end inside a character."""
        self._group += ids

    def flush(self) -> str:
        """What an unfinished character shows where the text ends or a special token follows; "" if there is none."""
        text = self._group_text() if self._group else ""
        self._context = (self._context + self._group)[-TAIL:]
        self._group = []
        return text

    def _group_text(self) -> str:
        return text_behind(self._tokenizer, self._context, self._group)


def text_behind(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `context`."""
    before = tokenizer.decode(list(context))
    whole = tokenizer.decode([*context, *ids])
    if whole.startswith(before):
        return whole[len(before):]
    # The context ends inside a character that `ids` complete: everything from there on is theirs.
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole)))
    return whole[shared:]


def token_texts(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """One text per id, joining to the decoded ids; the last token also carries an unfinished character."""
    stream = TextStream(tokenizer, context)
    texts: list[str] = []
    for id_ in ids:
        if texts and tokenizer.is_special(id_):
            texts[-1] += stream.flush()
        texts.append(stream.push(id_))
    if texts:
        texts[-1] += stream.flush()
    return texts


def position_of(texts: Sequence[str], offset: int) -> tuple[int, int]:
    """(position, characters into it) of the token that shows character `offset` of the joined texts.

    The first token of a group that makes up one character stands for the group. `offset` at the very end gives
    (len(texts), 0).
    """
    at = group = 0
    for position, text in enumerate(texts):
        if offset < at + len(text):
            return group, offset - at
        at += len(text)
        if text:
            group = position + 1
    return len(texts), offset - at


def group_start(texts: Sequence[str], position: int) -> int:
    """The first token of the group of tokens that share one character with the token at `position`."""
    while position > 0 and texts[position - 1] == "":
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
        if ids and text_behind(tokenizer, tail, ids) == text:
            return ids
    raise FixError(f"this tokenizer cannot write {text[:40]!r} exactly; type it in another form")


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
    yield tokenizer.encode_unnormalized(text)
    yield [id_ for character in text for id_ in tokenizer.encode_unnormalized(character)]


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
