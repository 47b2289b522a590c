"""What the doctor found, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lawf_repl.fits import BYTES, RATIO, size_text
from lawf_repl.ui.layout import visible
from lawf_repl.ui.theme import Theme

# By the tone of the colours.
BACKGROUND = {"dark": "dark background", "light": "light background", "middle": "background not known: colours that can be read on dark and light"}


def doctor_view(found: Mapping[str, Any], theme: Theme) -> RenderableType:
    """The fields of schema lawf.doctor/1, and last what is wrong."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(found):
        table.add_row(Text(name, theme.rich("quiet")), Text(visible(text)))
    parts: list[RenderableType] = [table]
    if found["fits"]:
        for one in found["fits"]["devices"]:
            parts += [Text(), _fits_table(one, theme)]
        parts.append(Text(f"counted as {found['fits']['formula']}; long prompts and large vocabularies take more", theme.rich("quiet")))
    parts.append(Text())
    parts += [Text(visible(problem), theme.rich("bad")) for problem in found["problems"]] or [Text("nothing is wrong", theme.rich("good"))]
    return Group(*parts)


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
            ("optional", ", ".join(f"{name} {one['version']} (extra {one['extra']})" for name, one in found["optional"].items()))]
    for one in found["devices"]:
        memory = "memory not told" if one["free"] is None else f"{_gib(one['free'])} of {_gib(one['total'])} free"
        rows.append(("device", f"{one['device']}  {one['name']}, {memory}, {one['dtype']}{', which lawf uses' if one['chosen'] else ''}"))
    rows.append(("threads", ", ".join(f"{name} {'not set' if count is None else count}" for name, count in found["threads"].items())))
    if found["decoding"]:
        rows.append(("decoding", f"on a CPU {found['decoding']}"))
    if model := found["model"]:
        rows.append(("model", f"{model['name']}, {model['architecture']}, {size_text(model['parameters'])} parameters, {_gib(model['bytes'])} on "
                              f"{model['device']} in {model['dtype']}, context {model['context'] or 'without limit'}, cache {model['cache']}"))
    for name, place in found["folders"].items():
        state = "cannot be written" if not place["writable"] else "writable" if place["exists"] else "not there yet, can be made"
        rows.append((name, f"{place['path']}  ({state})"))
    terminal = found["terminal"]
    size = f"{terminal['columns']} x {terminal['rows']}, " if terminal["columns"] else ""
    rows.append(("terminal", f"{size}TERM {terminal['TERM'] or 'not set'}, {terminal['encoding']}, colours {'on' if terminal['colours'] else 'off'}, "
                             f"{BACKGROUND[terminal['background']]}, input {_is(terminal['input'])}, output {_is(terminal['output'])}"))
    return rows


def _fits_table(one: Mapping[str, Any], theme: Theme) -> Table:
    """A row for each size, a column for each number type and use."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(5):
        table.add_column(no_wrap=True)
    sizes: dict[int, dict[str, Mapping[str, Any]]] = {}
    for fit in one["sizes"]:
        sizes.setdefault(fit["parameters"], {})[fit["dtype"]] = fit
    columns = [(dtype, use) for dtype in BYTES for use in RATIO]
    table.add_row(Text(f"fits {one['device']}", theme.rich("quiet")), *(Text(f"{dtype} {use}", theme.rich("quiet")) for dtype, use in columns))
    for size, fits in sizes.items():
        cells = [Text("yes" if fits[dtype][use] else "no", theme.rich("good" if fits[dtype][use] else "bad")) for dtype, use in columns]
        table.add_row(Text(size_text(size)), *cells)
    most = [f"to {size_text(one['largest'][dtype][use])}" for dtype, use in columns]
    table.add_row(Text("in all"), *(Text(cell, theme.rich("quiet")) for cell in most))
    return table


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _is(terminal: bool) -> str:
    return "a terminal" if terminal else "no terminal"
