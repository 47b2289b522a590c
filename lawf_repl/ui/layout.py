"""Text that others wrote, made safe to show and laid out in terminal cells. No styles here: strings and positions only."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import cell_len

from lawf_repl.records import Token
from lawf_repl.spans import bytes_name

# Invisible although their category is a letter's or a mark's: grapheme joiner, Hangul fillers, Khmer inherent vowels, braille blank.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_NEVER_FIRST = frozenset("，。！？；：、）」』】》〉”’…,.!?;:)]}")  # no line starts with these if it can be helped


@lru_cache(maxsize=65536)
def _shown(character: str) -> str:
    """One character as it may be sent to a terminal: itself, or its Python escape."""
    code = ord(character)
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _INVISIBLE
    if hidden or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF or _is_selector(code):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def _is_selector(code: int) -> bool:
    """Variation selectors change the width of what stands before them, differently from terminal to terminal."""
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF


def visible(text: str, *, newlines: bool = False) -> str:
    """Text without a character that a terminal would obey or hide: controls, bidi and zero-width characters become escapes.

    A newline becomes ↵, or stays where `newlines` is set; a tab becomes ⇥. A variation selector behind another character
    is left out, because it would break the columns.
    """
    parts = []
    for index, character in enumerate(text):
        if character == "\n":
            parts.append("\n" if newlines else "↵")
        elif character == "\t":
            parts.append("⇥")
        elif not (index and _is_selector(ord(character))):
            parts.append(_shown(character))
    return "".join(parts)


def folded(text: str, width: int) -> list[str]:
    """Safe text in lines of at most `width` cells, broken between words; a longer word is broken where it has to be."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cell_len(longer) <= width:
            line = longer
            continue
        lines += [line] if line else []
        line = ""
        for character in word:
            if cell_len(line + character) > width:
                lines.append(line)
                line = ""
            line += character
    return [*lines, line]


def pill(text: str) -> str:
    """A special token: <|im_end|> is shown as ⟨im_end⟩."""
    return f"⟨{visible(text).strip('<>|｜ ') or visible(text) or '∅'}⟩"


def token_label(text: str, special: bool = False) -> str:
    """One token on its own, on one line, every space of it visible."""
    if special:
        return pill(text)
    label = "".join("·" if character == " " else f"\\u{ord(character):04x}" if unicodedata.category(character) == "Zs" else character
                    for character in visible(text))
    return ("◌" + label if label and cell_len(label[0]) == 0 else label) or "∅"


def piece(token: Token) -> str:
    """One token inside the answer: whitespace tokens visible, a space before a word left as it is, newlines shown and kept."""
    if token.partial:
        return ""  # the token that completes the character shows it
    if token.special or not token.text:
        return token_label(token.text, token.special)
    text = visible(token.text, newlines=True).replace("\n", "↵\n")
    return text.replace(" ", "·") if token.text.isspace() else text


def groups(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """For each token the first and last position of the character it belongs to; (i, i) for a token that stands alone."""
    spans: list[tuple[int, int]] = []
    start = 0
    for index, token in enumerate(tokens):
        if not token.partial or index + 1 == len(tokens):
            spans += [(start, index)] * (index + 1 - start)
            start = index + 1
    return spans


def token_names(tokens: Sequence[Token], token_bytes: Callable[[int], bytes]) -> list[str]:
    """Each token on its own, as `token_label` has it; those that make up one character together by their bytes."""
    return [bytes_name(token_bytes(token.id)) if first != last else token_label(token.text, token.special)
            for token, (first, last) in zip(tokens, groups(tokens), strict=True)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one line shows of one token; several tokens of one character are shown as the last of them."""

    position: int
    text: str


def wrap(tokens: Sequence[Token], width: int) -> list[list[Chunk]]:
    """The answer in lines of at most `width` cells, broken at spaces and around wide characters, the tokens still told apart."""
    width = max(width, 4)
    lines: list[list[tuple[str, int, int]]] = []
    line: list[tuple[str, int, int]] = []
    column = break_at = earlier_break = 0
    for character, position in _characters(tokens):
        cells = 0 if character == "\n" else cell_len(character)
        if character == "\n" or (character == " " and column + cells > width):
            lines.append(line)
            line, column, break_at, earlier_break = [], 0, 0, 0
            continue
        if character in _NEVER_FIRST and break_at == len(line):
            break_at = earlier_break
        elif cells == 2:
            earlier_break, break_at = break_at, len(line)
        while column + cells > width:
            cut = break_at or len(line)
            lines.append(line[:cut])
            line, break_at, earlier_break = line[cut:], 0, 0
            column = sum(item[2] for item in line)
        line.append((character, position, cells))
        column += cells
        if character == " " or cells == 2:
            earlier_break, break_at = break_at, len(line)
    return [_chunks(items) for items in [*lines, line]]


def _characters(tokens: Sequence[Token]) -> Iterator[tuple[str, int]]:
    spans = groups(tokens)
    for position, token in enumerate(tokens):
        if spans[position][1] == position:
            for character in piece(token):
                yield character, position


def _chunks(items: list[tuple[str, int, int]]) -> list[Chunk]:
    chunks: list[Chunk] = []
    for character, position, _ in items:
        if chunks and chunks[-1].position == position:
            chunks[-1] = Chunk(position, chunks[-1].text + character)
        else:
            chunks.append(Chunk(position, character))
    return chunks
