"""Which sessions of a folder are listed, and in which order: what --filter and --sort of `lawf sessions` mean."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence

from lawf_repl.digest import Digest
from lawf_repl.errors import UsageError

Keep = Callable[[Digest], bool]
Key = str | float
TEXTS: dict[str, Callable[[Digest], str]] = {"name": lambda row: row.name, "model": lambda row: row.model, "prompt": lambda row: row.prompt}
FIGURES: dict[str, Callable[[Digest], float | None]] = {
    "anchors": lambda row: float(row.anchors) if row.readable else None, "drift": lambda row: row.drift}
FIXED = {True: "yes", False: "no", None: "unknown"}
ORDER = {"yes": 0.0, "no": 1.0}
COMPARE: dict[str, Callable[[float, float], bool]] = {"=": operator.eq, "<": operator.lt, ">": operator.gt}
COLUMNS = ("name", "model", "prompt", "anchors", "fixed", "drift", "date")  # as in parser.py, which starts without this file
_CONDITION = re.compile(rf"({'|'.join(COLUMNS)})\s*([=<>])(.*)", re.DOTALL)
_NAMED = re.compile(r"(\w+)\s*[=<>]")  # what reads as a condition is not searched for as a text


def kept_by(texts: Iterable[str]) -> Keep:
    """Whether a session matches all filters. Raises UsageError for one that cannot be."""
    conditions = [condition(text) for text in texts]
    return lambda row: all(holds(row) for holds in conditions)


def condition(text: str) -> Keep:
    """One filter. Raises UsageError."""
    found = _CONDITION.fullmatch(text.strip())
    if found is None and (named := _NAMED.match(text.strip())):
        raise UsageError(f"--filter {text}: {named[1]} is no column: expected one of {', '.join(COLUMNS)}; prompt={text.strip()} looks for this text")
    if found is None:
        wanted = text.strip().casefold()
        return lambda row: any(wanted in of(row).casefold() for of in TEXTS.values())
    column, sign, value = found[1], found[2], found[3].strip()
    if column in FIGURES:
        return _figure(column, sign, value, text)
    if column == "date":
        # A day is compared as it is written: 2026-11 lies before 2026-11-01 and all of that month begins with it.
        return {"=": lambda row: row.created.startswith(value), "<": lambda row: "" < row.created < value,
                ">": lambda row: row.created >= value}[sign]
    if sign != "=":
        raise UsageError(f"--filter {text}: {column} is compared with = only")
    if column == "fixed":
        if value not in FIXED.values():
            raise UsageError(f"--filter {text}: expected fixed=yes, fixed=no or fixed=unknown")
        return lambda row: row.readable and FIXED[row.fixed] == value
    return lambda row: value.casefold() in TEXTS[column](row).casefold()


def _figure(column: str, sign: str, value: str, text: str) -> Keep:
    try:
        wanted = float(value)
    except ValueError:
        raise UsageError(f"--filter {text}: expected a number behind {sign}") from None

    def holds(row: Digest) -> bool:
        figure = FIGURES[column](row)
        return figure is not None and COMPARE[sign](figure, wanted)
    return holds


def sorted_by(rows: Sequence[Digest], column: str, reverse: bool = False) -> list[Digest]:
    """Rows in the order of a column, dates latest first; what has no figure there comes last in any case, the same is sorted by name."""
    keys: dict[str, Callable[[Digest], Key | None]] = {
        **{name: lambda row, of=of: of(row).casefold() or None for name, of in TEXTS.items()}, **FIGURES,  # type: ignore[misc]
        "fixed": lambda row: ORDER.get(FIXED[row.fixed]), "date": lambda row: row.created or None}
    key = keys[column]
    by_name = sorted(rows, key=lambda row: (row.name.casefold(), row.name))
    there = [row for row in by_name if key(row) is not None]
    there.sort(key=key, reverse=reverse != (column == "date"))  # type: ignore[arg-type]  # none of them is None
    return [*there, *(row for row in by_name if key(row) is None)]
