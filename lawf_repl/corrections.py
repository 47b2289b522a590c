"""What a correction does to the ids of an answer: the rules of correcting as pure functions.

Each function takes the answer as it stands and gives a Correction: from which position on, which ids. Nothing left of that
position changes, and nothing is ever decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence

from lawf_repl.errors import FixError, NothingToFix
from lawf_repl.records import Completion, Correction, CorrectionKind, Token
from lawf_repl.spans import Tokenizer, encode_behind, first_word, group_start, position_of


def check(answer: Completion, position: int) -> None:
    """Raise FixError unless a correction can begin at `position`: at a token, or where the next one would stand."""
    last = len(answer.tokens) - (1 if answer.finish == "eos" else 0)  # nothing stands behind the end-of-turn token
    if not 0 <= position <= last:
        raise FixError(f"position {position} lies outside the answer: give one from 0 to {last}")


def kept(answer: Completion, position: int) -> tuple[int, list[int]]:
    """(position moved left to a whole character, ids of prompt and answer before it). Raises FixError."""
    check(answer, position)
    position = group_start(answer.tokens, position)
    return position, [*answer.prompt_ids, *answer.ids[:position]]


def replacement(tokenizer: Tokenizer, answer: Completion, position: int, text: str, kind: CorrectionKind = "replace") -> Correction:
    """`text`, exactly, behind the tokens before `position`. Raises FixError, NothingToFix."""
    if not text:
        raise FixError("the fix is empty: type the right text, or use delete or end here")
    position, before = kept(answer, position)
    return settled(answer, kind, position, encode_behind(tokenizer, before, text), text)


def ending(answer: Completion, position: int, end_id: int) -> Correction:
    """The end-of-turn token at `position`. Raises NothingToFix where the answer ends there already."""
    position, _ = kept(answer, position)
    if answer.finish == "eos" and position == len(answer.tokens) - 1:
        raise NothingToFix("nothing to fix: the answer ends there already")  # whichever of several end-of-turn tokens it is
    return settled(answer, "end", position, [end_id], "")


def appending(tokenizer: Tokenizer, answer: Completion, text: str) -> Correction:
    """`text` where the answer ended: its first token competes with the end-of-turn token.

    An answer that did not come to its end also goes on without a text.
    """
    if not text and answer.finish != "eos":
        return Correction("go_on", len(answer.tokens), "", (), ())
    return replacement(tokenizer, answer, len(answer.tokens) - (1 if answer.finish == "eos" else 0), text, "go_on")


def deletion(answer: Completion, position: int, count: int, end_id: int | None) -> Correction:
    """Leave out `count` tokens from the character at `position` on: the text behind them comes next, or the end."""
    position, _ = kept(answer, position)
    tokens = answer.tokens
    count = max(count, 1)
    while position + count < len(tokens) and tokens[position + count - 1].partial:
        count += 1  # the rest of a character goes with its first token
    behind = tokens[position + count:]
    if not behind:
        if end_id is None:
            raise FixError("this model has no end-of-turn token: its answers cannot be ended")
        return ending(answer, position, end_id)
    whole = next((i + 1 for i, token in enumerate(behind) if token.text), len(behind))
    while whole < len(behind) and all(a.id == b.id for a, b in zip(behind[:whole], tokens[position:], strict=False)):
        whole += 1  # a repeated token: the first that differs shows that one was left out
    return settled(answer, "delete", position, [token.id for token in behind[:whole]], "")


def substitution(tokenizer: Tokenizer, answer: Completion, old: str, new: str, end_id: int | None) -> Correction:
    """The first `old` in the answer becomes `new`; an empty `new` deletes it, an empty `old` appends.

    Raises FixError where `old` does not stand in the answer, NothingToFix where both are the same.
    """
    if not old:
        return appending(tokenizer, answer, new)
    offset = answer.text.find(old)
    if offset < 0:
        raise FixError(f"{old!r} does not stand in the answer {shortened(answer.text)!r}: give the text exactly as it is shown")
    if old == new:
        raise NothingToFix(f"nothing to fix: {old!r} stands there already")
    position, into = position_of(answer.tokens, offset)
    text, rest = answer.text[offset - into:offset] + new, answer.text[offset + len(old):]
    position, before = kept(answer, position)
    standing = answer.ids[position:]
    ids = encode_behind(tokenizer, before, text) if text else []
    while tuple(ids) == standing[:len(ids)] or not new:
        # Only leaving something out: what comes next, or the end, shows that it is gone.
        new = new or old
        word = first_word(rest)
        if not word:
            if end_id is None:
                raise FixError("this model has no end-of-turn token: its answers cannot be ended")
            ids.append(end_id)
            break
        text, rest = text + word, rest[len(word):]
        ids = encode_behind(tokenizer, before, text)
    return settled(answer, "replace", position, ids, text)


def settled(answer: Completion, kind: CorrectionKind, position: int, ids: Sequence[int], text: str) -> Correction:
    """The correction that is left when the tokens which stand there already are kept. Raises NothingToFix if that is all of them."""
    standing, ids = answer.ids, list(ids)
    while ids and position < len(standing) and standing[position] == ids[0]:
        position, ids = position + 1, ids[1:]
    if not ids:
        raise NothingToFix(f"nothing to fix: {text!r} stands there already" if text else "nothing to fix: the answer goes on that way already")
    return Correction(kind, position, text, tuple(ids), standing[position:])


def departure(tokens: Sequence[Token], text: str) -> tuple[int, str]:
    """(position, text before it) of the first token at which an answer departs from `text`."""
    shown, position = "", 0
    for i, token in enumerate(tokens):
        if token.special or not text.startswith(shown + token.text):
            break
        shown += token.text
        if not token.partial:  # a whole character was reached: the tokens up to here stand
            position = i + 1
    return position, shown


def shortened(text: str) -> str:
    """A text as part of a message."""
    return text if len(text) <= 80 else text[:77] + "..."
