"""The table of saved sessions: a row for each, and for a file that cannot be read what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lawf_repl.digest import Digest
from lawf_repl.selection import FIXED
from lawf_repl.ui.chronicle import time_text
from lawf_repl.ui.layout import visible
from lawf_repl.ui.render import shorten
from lawf_repl.ui.theme import Theme

MODEL = 24             # cells of this column at most
WIDTH = 100            # cells of the table where there is no terminal
PROMPT = 160           # cells of a prompt at most
LEAST_PROMPT = 24      # where it would get fewer, other columns are left out
DISPENSABLE = ("date", "model")
RIGHT = ("anchors", "drift")


def sessions_table(rows: Sequence[Digest], theme: Theme, width: int | None, held: Collection[Path] | None = None) -> Table:
    """The table laid out for `width` cells. Where that is None, for programs, it has every column and whole names, and prompts are cut for WIDTH.

    `held` are the files that were verified and hold; None where none were verified.
    """
    columns = {title: [_cell(title, row, theme, held) for row in rows] for title in ("name", "model", "prompt", "anchors", "fixed", "drift", "date")}
    if held is not None:
        columns["file"] = [_cell("file", row, theme, held) for row in rows]
    gap = 2 if theme.plain else 3
    if width is not None:
        for cell in columns["name"]:
            cell.plain = shorten(cell.plain, max(8, width // 4))
    for title in ("", *(DISPENSABLE if width is not None else ())):
        columns.pop(title, None)
        room = (width or WIDTH) - sum(max(len(name), *(cell.cell_len for cell in cells)) + gap for name, cells in columns.items() if name != "prompt")
        if room >= LEAST_PROMPT:
            break
    least = 4 if width is not None else LEAST_PROMPT
    for cell in columns["prompt"]:
        cell.plain = shorten(cell.plain, max(least, min(room, PROMPT)))
    table = Table(box=None if theme.plain else box.SIMPLE_HEAD, border_style=theme.rich("border"), header_style=theme.rich("quiet"),
                  show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title in columns:
        table.add_column(title, justify="right" if title in RIGHT else "left", no_wrap=True, overflow="ellipsis")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _cell(column: str, row: Digest, theme: Theme, held: Collection[Path] | None) -> Text:
    """What stands in a column of a row."""
    if column == "prompt":
        return Text(prompt_text(row), theme.rich("bad" if row.troubles else "sure"))
    if column == "file":
        holds = held is not None and row.path in held
        return Text("holds" if holds else "FAILS", theme.rich("good" if holds else "bad"))
    if column == "name":
        return Text(visible(row.name), theme.rich("title"))
    if column == "fixed":
        part = f"{row.right} of {row.compared}"
        return Text(part if 0 < row.right < row.compared else FIXED[row.fixed] if row.compared else "", theme.rich("good" if row.fixed else "bad"))
    texts = {"model": shorten(visible(row.model), MODEL), "anchors": str(row.anchors) if row.readable else "",
             "drift": "" if row.drift is None else f"{row.drift:.1e}", "date": visible(time_text(row.created))[:10]}
    return Text(texts[column], theme.rich("quiet" if column == "date" else "sure"))


def prompt_text(row: Digest) -> str:
    """The prompt, how many more there are, and that something is wrong with the file: what it is stands below the table."""
    more = f"  (+{row.prompts - 1})" if row.prompts > 1 else ""
    wrong = ("! damaged  " if row.readable else "! cannot be read") if row.troubles else ""
    return f"{wrong}{visible(row.prompt)}{more}"


def summary(count: int, held: int) -> str:
    """In a sentence, what came of verifying."""
    return f"{held} of {count} session{'' if count == 1 else 's'} hold{'s' if count == 1 else ''}"
