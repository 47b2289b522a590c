"""Small parts of the answer view: an editable line, where words start, and where the view opens."""

from __future__ import annotations

from collections.abc import Sequence

from lawf_repl.records import Token
from lawf_repl.ui.theme import UNSURE


class Line:
    """One editable line of text with a caret."""

    def __init__(self) -> None:
        self.text = ""
        self.caret = 0

    def insert(self, text: str) -> None:
        """Put text at the caret."""
        self.text = self.text[:self.caret] + text + self.text[self.caret:]
        self.caret += len(text)

    def press(self, key: str) -> bool:
        """Apply an editing key; False if it is none."""
        left, right = self.text[:self.caret], self.text[self.caret:]
        moves = {"left": max(self.caret - 1, 0), "right": min(self.caret + 1, len(self.text)), "home": 0, "end": len(self.text)}
        word = left.rstrip().rpartition(" ")
        edits = {"backspace": (left[:-1], right), "delete": (left, right[1:]), "kill": ("", right),
                 "word": (word[0] + word[1], right)}
        if key in moves:
            self.caret = moves[key]
        elif key in edits:
            self.text, self.caret = "".join(edits[key]), len(edits[key][0])
        return key in moves or key in edits


def starts_word(tokens: Sequence[Token], position: int) -> bool:
    """Whether a token begins a word: after whitespace, with a leading space, or because it is a special token."""
    text, before = tokens[position].text, tokens[position - 1].text
    return tokens[position].special or text[:1].isspace() or before[-1:].isspace()


def least_sure(tokens: Sequence[Token], start: int, fixed: frozenset[int]) -> int:
    """Where a view opens: the least probable token from `start` on that no fix has set; `start` if none is unsure."""
    candidates = [position for position in range(start, len(tokens)) if position not in fixed]
    best = min(candidates, key=lambda position: tokens[position].p, default=start)
    if start and best < len(tokens) and tokens[best].p >= UNSURE:
        best = start
    return max(0, min(best, len(tokens) - 1))
