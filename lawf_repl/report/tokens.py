"""An answer as tokens: coloured by probability, and underlined where the model was unsure; what else could have stood there on hover and focus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from lawf_repl.records import Token
from lawf_repl.report.markup import Html, joined, tag, text
from lawf_repl.ui.layout import groups, piece, token_label
from lawf_repl.ui.render import alternative_rows, bar, least_sure, percent, shorten, token_look

WORTH = 0.001   # alternatives below this probability are left to the last row
FEWEST = 3      # but so many are always shown
BAR = 8         # characters of a bar
LABEL = 40      # cells of a token's name at most
LEGEND = (("sure", "95 % and more"), ("likely", "80 %"), ("open", "50 %"), ("unsure", "20 %"), ("doubtful", "less"))


class Numbers:
    """Ids for the elements of one page, none twice."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        self._last += 1
        return f"n{self._last}"


def answer(tokens: Sequence[Token], numbers: Numbers, fixed: frozenset[int] = frozenset()) -> Html:
    """A whole answer, with a way around it for the keyboard and its least sure tokens in words."""
    if not tokens:
        return tag("div", "∅", class_="answer")
    behind = numbers.next()
    return joined(
        tag("a", "skip the tokens", href=f"#{behind}", class_="skip"),
        tag("div", *(joined(*_token(tokens, start, last, numbers, fixed)) for start, last in spans(tokens)), class_="answer", dir="auto"),
        tag("p", f"least sure: {least_sure(tokens)}", class_="quiet small", id=behind, dir="auto"))


def spans(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """First and last position of each character or token, in order."""
    return list(dict.fromkeys(groups(tokens)))


def changed(tokens: Sequence[Token], positions: frozenset[int], name: str, sign: str, numbers: Numbers | None) -> Html:
    """An answer in which the tokens at these positions are marked: in an element `name`, between two signs. No tips without `numbers`."""
    def parts() -> Iterator[Html]:
        for marked, run in groupby(spans(tokens), key=lambda span: span[1] in positions):
            inside = [_token(tokens, start, last, numbers) if numbers else _bare(tokens[last]) for start, last in run]
            if marked:  # the space before what is marked is not marked itself
                yield text(inside[0][0])
                yield tag(name, tag("b", sign, class_="sign"), inside[0][1], *(joined(*one) for one in inside[1:]), tag("b", sign, class_="sign"))
            else:
                yield joined(*(joined(*one) for one in inside))

    return tag("div", *parts(), class_="answer", dir="auto")


def _bare(token: Token) -> tuple[str, Html]:
    """As `_token`, of a word that is no token."""
    lead, rest = _parted(piece(token))
    return lead, tag("span", rest)


def _parted(shown: str) -> tuple[str, str]:
    """The spaces that a token begins with, and the rest of it."""
    rest = shown.lstrip(" ")
    return shown[:len(shown) - len(rest)], rest


def _token(tokens: Sequence[Token], start: int, last: int, numbers: Numbers, fixed: frozenset[int] = frozenset()) -> tuple[str, Html]:
    """The spaces before a token, which would make a ragged underline, and the token with its tip."""
    token, mended = tokens[last], any(position in fixed for position in range(start, last + 1))
    names = ["t", token_look(token), *(["mended"] if mended else [])]
    number = numbers.next()
    tip = tag("span", *_tip(tokens, start, last, mended), class_="tip", id=number, role="tooltip")
    lead, shown = _parted(piece(token))
    broken = "\n" if shown.endswith("\n") else ""  # nor is a line break at its end part of it
    return lead, joined(tag("span", shown.removesuffix("\n"), tip, class_=" ".join(names), tabindex=0, aria_describedby=number), broken)


def _tip(tokens: Sequence[Token], start: int, last: int, mended: bool) -> Iterator[Html]:
    token = tokens[last]
    ids = " ".join(str(one.id) for one in tokens[start:last + 1])
    where = f"{start}" if start == last else f"{start} to {last}"
    yield tag("span", tag("b", shorten(token_label(token.text, token.special), LABEL)), f"  at {where}, id {ids}", class_="head")
    fix = ", put there by a fix" if mended else ""
    yield tag("span", f"p {percent(token.p).strip()}, rank {token.rank + 1}, entropy {token.entropy:.2f} nats{fix}", class_="head quiet")
    rows = alternative_rows(token, token.alternatives)
    shown = [row for index, row in enumerate(rows[:-1]) if index < FEWEST or row.current or row.p >= WORTH]
    for row in shown:
        short = shorten(row.label, LABEL)
        label = joined(tag("b", short) if row.current else short)
        yield _row("" if row.rank is None else f"{row.rank + 1}", label, row.p)
    yield _row("", text("all others"), max(0.0, 1.0 - sum(row.p for row in shown)))


def _row(rank: str, label: Html, p: float) -> Html:
    drawn = tag("span", bar(p, BAR).rstrip(), class_="bar", aria_hidden="true")
    return tag("span", tag("span", rank, class_="rank"), tag("bdi", label, class_="label"), drawn, tag("span", percent(p).strip(), class_="p"),
               class_="row")


def legend() -> Html:
    """What the colours mean."""
    samples = [tag("span", meaning, class_=f"t {look}") for look, meaning in LEGEND]
    return tag("p", "probability of a token: ", *(joined(sample, " ") for sample in samples), tag("span", "put there by a fix", class_="t mended"),
               " · hover or Tab to a token: what else could have stood there", class_="legend small quiet")
