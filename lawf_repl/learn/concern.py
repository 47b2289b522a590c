"""Tells prompts that a fix may well concern from those that it does not, by what is asked and what the base answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from lawf_repl.engine.base import Engine
from lawf_repl.records import Anchor, Case

SAME = 0.5            # share of the turn's tokens that a prompt has too, in their order, from which on it may be the same request
_WORD, _NAME, _NAME_BEGUN = re.compile(r"[^\W_]+"), re.compile(r"\w+"), re.compile(r"\w*$")


class Concern:
    """What one case is about: the last turn of its prompt, ids [start, end), the base's answer, and what was rejected and chosen."""

    def __init__(self, engine: Engine, case: Case, start: int, end: int, before: Sequence[int]) -> None:
        self._engine, self._before = engine, list(before)
        self._start, self._behind = start, len(case.prompt_ids) - end
        self._turn = self._turn_of(case.prompt_ids)
        self._words = words(self._text(self._turn))
        self._anchor = anchor = case.anchors[0] if case.anchors else None
        self._mistake = [*case.completion_ids[:anchor.position], anchor.rejected_id] if anchor else None
        self._wrong = wrong = self._name([*self._mistake, *before[len(self._mistake):]] if self._mistake else (), anchor)
        right = self._name(case.completion_ids, anchor)
        self._brought, self._lost = wrong - right - self._words, (right - wrong) & self._words

    def same(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether a prompt's mistake is that of the case: it asks much the same, and for what was rejected no more than that did."""
        answer = list(answer)
        if answer != self._before and (self._mistake is None or answer[:len(self._mistake)] != self._mistake
                                       or self._name(answer, self._anchor) != self._wrong):  # 12 begins with 1 and is not it
            return False
        turn = self._turn_of(prompt)
        asked = words(self._text(turn))
        if self._brought & asked or self._lost - asked:
            return False  # "turn it on", where "turn it off" was answered with "on"
        common = sum(block.size for block in SequenceMatcher(None, self._turn, turn, autojunk=False).get_matching_blocks())
        return answer == self._before or common >= SAME * len(self._turn)

    def _turn_of(self, prompt: Sequence[int]) -> list[int]:
        """The last turn of a prompt that stands in the same template."""
        return list(prompt[self._start:len(prompt) - self._behind])

    def _name(self, ids: Sequence[int], anchor: Anchor | None) -> frozenset[str]:
        """The words of the name that the anchor stands in, in an answer: send_message has two."""
        if anchor is None:
            return frozenset()
        begun = _NAME_BEGUN.search(self._text(ids[:anchor.position]))
        name = _NAME.search(self._text(ids), begun.start() if begun else 0)
        return words(name.group()) if name else frozenset()

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self._engine.token_text(id_) for id_ in ids)


def words(text: str) -> frozenset[str]:
    """The words of a text, in small letters."""
    return frozenset(word.casefold() for word in _WORD.findall(text))
