"""The answer view on a terminal: draws the picker's state inline and feeds it keys; erased when done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.mouse_events import MouseEvent, MouseEventType
from rich.cells import cell_len

from lawf_repl.records import Token
from lawf_repl.ui.keys import DEFAULT, KEY_NAMES, Keymap
from lawf_repl.ui.layout import folded, token_label, token_names, visible
from lawf_repl.ui.picker import COMMAND, Picker
from lawf_repl.ui.port import Action
from lawf_repl.ui.render import bar, percent, shorten, token_look
from lawf_repl.ui.theme import Theme, probability_look

MENU_ROWS = 9
NOTE_ROWS = 4
# The keys under the view. Where they do not fit, those with the highest number are left out, each as a whole.
Hint = tuple[int, str]
HINTS: dict[str, tuple[Hint, ...]] = {
    "alternatives": ((0, "1-9 or enter takes it"), (2, "up/down"), (1, "{fix} types another text"), (0, "esc back")),
    "fix": ((0, "enter puts it there"), (1, "tab leading space"), (2, "alt-enter new line"), (0, "esc cancels")),
    "go_on": ((0, "enter goes on with it"), (1, "tab leading space"), (2, "alt-enter new line"), (0, "esc cancels")),
    "unfinished": ((0, "enter goes on, with a text or without"), (1, "tab leading space"), (2, "alt-enter new line"), (0, "esc cancels")),
    "keys": ((0, "any key closes this"),),
}
HINTED = ((2, "others", "others"), (0, "fix", "fix"), (3, "delete", "delete"), (4, "end_here", "end"), (5, "go_on", "go on"), (1, "accept", "accept"),
          (1, "train", "train"), (0, "keys", "keys"))
HELPED = (
    (("left", "right", "up", "down"), "by token or line; or click"),
    (("next_word", "previous_word"), "by word"), (("line_start", "line_end"), "ends of the line"), (("first", "last"), "ends of the answer"),
    (("next_unsure", "previous_unsure"), "next, previous unsure token (p<0.5)"),
    (("others",), "what else could stand here"),
    (("fix",), "type the right text; or just type"),
    (("delete", "end_here", "go_on"), "delete, end here, go on at the end"), (("undo", "redo"), "undo, redo"),
    (("accept", "train"), "accept the answer, train"), (("back",), "back to the prompt; so does Ctrl-C"),
)
SHOWN_KEYS_OF = {4: 2, 1: 2}  # how many keys of each action a line of the help shows, by its number of actions; else one
Target = tuple[str, int]  # what a click here is on: a "token" of the answer or a "row" of the alternatives, by its index


class Cell(NamedTuple):
    """A piece of a row: its look, its text, and what a click on it means."""

    look: str
    text: str
    target: Target | None = None


Row = list[Cell]


def hint(mode: str, keys: Keymap = DEFAULT, width: int = 80) -> str:
    """The line of keys under the view, in at most `width` cells."""
    if mode == "view":
        hints = [(number, f"{keys.shown(name)} {word}") for number, name, word in HINTED]
    else:
        hints = [(number, text.format(fix=keys.shown("fix"))) for number, text in HINTS[mode]]
    while sum(cell_len(text) + 2 for _, text in hints) - 2 > width and (least := max(number for number, _ in hints)):
        hints.remove(next(one for one in reversed(hints) if one[0] == least))
    return "  ".join(text for _, text in hints)


def keys_help(keys: Keymap = DEFAULT) -> list[tuple[str, str]]:
    """Keys and what they do, a line each."""
    rows = [([keys.shown(name, SHOWN_KEYS_OF.get(len(names), 1)) for name in names], meaning) for names, meaning in HELPED]
    if keys.action(COMMAND) is None:
        rows.insert(-1, ([COMMAND], "begin a command at the prompt"))
    return [("  ".join(shown[0].split() if len(shown) == 1 else shown), meaning) for shown, meaning in rows]


def draw(picker: Picker) -> list[Row]:
    """The whole view as rows of (look, text), each no wider than the terminal; text is safe to show."""
    below = _below(picker)
    notes = _notes(picker)
    room = max(3, picker.height - len(below) - max(len(notes), 1) - 2)
    answer = _answer_rows(picker)
    line = len(answer) - 1 if picker.mode == "go_on" else picker.place()[0]
    top = max(0, min(line - room // 2, len(answer) - room))
    where = [Cell("quiet", f"  lines {top + 1}-{top + room} of {len(answer)}")] if len(answer) > room else []
    mode = "unfinished" if picker.mode == "go_on" and picker.unfinished else picker.mode
    last = [[Cell("quiet", "  " + hint(mode, picker.keys, picker.width - 3))]]
    return [_clip(row, picker.width - 1) for row in (*answer[top:top + room], where, *below, *(notes or last))]


def _notes(picker: Picker) -> list[Row]:
    """What the view has to say, in a few lines at most."""
    lines = folded(visible(picker.note), picker.width - 4) if picker.note else []
    if len(lines) > NOTE_ROWS:
        lines[NOTE_ROWS - 1:] = [shorten(" ".join(lines[NOTE_ROWS - 1:]), picker.width - 4)]
    return [[Cell("accent", f"  {line}")] for line in lines]


def _answer_rows(picker: Picker) -> list[Row]:
    first, last = picker.character
    rows: list[Row] = []
    editing = picker.mode in ("fix", "go_on")
    for line in picker.lines:
        row: Row = [Cell("", "  ")]
        for chunk in line:
            look = token_look(picker.tokens[chunk.position], chunk.position in picker.fixed)
            if editing and chunk.position >= picker.edit_position:
                look = "dropped"
            elif not editing and first <= chunk.position <= last:
                look = "cursor"
            row.append(Cell(look, chunk.text, ("token", chunk.position)))
        rows.append(row)
    return rows


def _below(picker: Picker) -> list[Row]:
    token = picker.token
    if picker.mode == "keys":
        return [[Cell("accent", f"  {keys}" + " " * (22 - cell_len(keys))), Cell("", meaning)] for keys, meaning in keys_help(picker.keys)]
    if picker.mode in ("fix", "go_on"):
        return [_edit_row(picker), _chip_row(picker)]
    if token is None:
        return [[Cell("quiet", "  (empty answer)")]]
    rows = [_status(picker, token)]
    if picker.mode == "alternatives":
        rows += _menu(picker)
    return rows


def _status(picker: Picker, token: Token) -> Row:
    first, last = picker.character
    known = picker.reference is not None and picker.cursor < len(picker.reference)
    base = f"  base {percent(picker.reference[picker.cursor]).strip()}" if known and picker.reference else ""
    shown = picker.lookup.token_bytes(token.id).hex() if picker.width >= 72 else ""
    shown = f"  0x{shown if len(shown) <= 8 or picker.width >= 100 else shown[:6] + '…'}" if shown else ""
    figures = f"  id {token.id}{shown}  p {percent(token.p).strip()}{base}  #{token.rank + 1}  entropy {token.entropy:.2f}"
    label = shorten(token_label(token.text, token.special), max(8, picker.width - len(figures) - 8))
    if first != last:
        whole = token_label(picker.tokens[last].text)
        label = f"{picker.cursor - first + 1}/{last - first + 1} of {whole}"
    return [Cell("quiet", f"  {picker.cursor}  "), Cell(token_look(token), label), Cell("quiet", figures)]


def _menu(picker: Picker) -> list[Row]:
    shown = max(3, min(MENU_ROWS + 1, picker.height - 8))
    top = max(0, min(picker.selected - shown // 2, len(picker.rows) - shown))
    wide = max([cell_len(row.label) for row in picker.rows] + [6])
    wide = min(wide, max(8, picker.width - 45))
    rows: list[Row] = []
    for index, row in enumerate(picker.rows[top:top + shown], start=top):
        label = shorten(row.label, wide)
        label += " " * (wide - cell_len(label))
        number = f"{index + 1:>4} " if index < 9 and row.alternative else "     "
        rank = "    " if row.rank is None else f"#{row.rank + 1:<3}"
        look = "cursor" if index == picker.selected else "quiet" if row.alternative is None else probability_look(row.p)
        target = ("row", index)
        rows.append([Cell("quiet", number, target), Cell(look, label, target), Cell("", f"  {percent(row.p)} ", target),
                     Cell("bar", bar(row.p, 12), target), Cell("quiet", f" {rank}{' stands here' if row.current else ''}", target)])
    return rows


def _edit_row(picker: Picker) -> Row:
    name = "  fix    " if picker.mode == "fix" else "  go on  "
    row: Row = [Cell("accent", name), Cell("bar", token_label(picker.lead) if picker.lead else "")]
    caret, text = picker.line.caret, picker.line.text
    room = max(8, picker.width - 16)
    left = visible(text[:caret])
    while cell_len(left) > room - 6:
        left = left[1:]
    right = visible(text[caret + 1:])
    under = visible(text[caret:caret + 1]) or " "
    return [*row, Cell("title", left), Cell("cursor", under), Cell("title", shorten(right, max(2, room - cell_len(left))))]


def _chip_row(picker: Picker) -> Row:
    if picker.chip_note:
        return [Cell("bad", "         " + visible(picker.chip_note))]
    if not picker.chips:
        return [Cell("quiet", "         what you type appears here as tokens")]
    names = token_names(picker.chips, picker.lookup.token_bytes)
    chips = [(Cell(probability_look(chip.p), name), Cell("quiet", f" {percent(chip.p).strip()} #{chip.rank + 1}   "))
             for chip, name in zip(picker.chips, names, strict=True)]
    cells = [sum(cell_len(cell.text) for cell in chip) for chip in chips]
    room, first = picker.width - 13, len(chips) - 1
    while first and sum(cells[first - 1:]) <= room:
        first -= 1  # where there is no room for all of them, the last ones are shown
    return [Cell("quiet", "       … " if first else "         "), *(cell for chip in chips[first:] for cell in chip)]


def _clip(row: Row, width: int) -> Row:
    """A row cut to the terminal's width, with … where something was left out."""
    if sum(cell_len(cell.text) for cell in row) <= width:
        return row
    clipped: Row = []
    room = width - 1
    for cell in row:
        kept = cell.text if cell_len(cell.text) <= room else shorten(cell.text, room + 1)[:-1]
        clipped.append(cell._replace(text=kept))
        room -= cell_len(kept)
        if kept != cell.text:
            break
    return [*clipped, Cell("quiet", "…")]


def _fragments(picker: Picker, point: Callable[[Target, MouseEvent], None]) -> StyleAndTextTuples:
    size = get_app().output.get_size()
    picker.resize(size.columns, size.rows)
    fragments: StyleAndTextTuples = []
    for number, row in enumerate(draw(picker)):
        fragments += [("", "\n")] if number else []
        fragments += [(f"class:{cell.look}" if cell.look else "", cell.text, partial(point, cell.target or ("", 0))) for cell in row]
    return fragments


def run_picker(picker: Picker, theme: Theme, mouse: bool = True) -> Action:
    """Show the view until the user decides; what it looks up runs in one thread, done before this returns."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        serving = False

        async def serve() -> None:
            nonlocal serving
            serving = True
            while (question := picker.take_question()) is not None:
                await asyncio.get_running_loop().run_in_executor(worker, picker.answer, question)
                application.invalidate()
            serving = False

        def press(event: KeyPressEvent, name: str, data: str) -> None:
            if application.is_done:  # keys that came in one batch behind the one that decided
                return
            decide(picker.press(name, data))

        def decide(action: Action | None) -> None:
            if action is not None:
                application.exit(result=action)
            elif not serving:
                application.create_background_task(serve())

        def point(target: Target, event: MouseEvent) -> None:
            if application.is_done:
                return
            if event.event_type is MouseEventType.MOUSE_UP:
                decide(picker.click(*target))
            elif event.event_type in (MouseEventType.SCROLL_DOWN, MouseEventType.SCROLL_UP):
                decide(picker.press("down" if event.event_type is MouseEventType.SCROLL_DOWN else "up"))

        application: Application[Action] = Application(
            layout=Layout(Window(FormattedTextControl(lambda: _fragments(picker, point), focusable=True, show_cursor=False),
                                 wrap_lines=False, always_hide_cursor=True, dont_extend_height=True)),
            key_bindings=_bindings(press, picker.keys), style=theme.prompt_toolkit(), full_screen=False, erase_when_done=True,
            mouse_support=mouse)
        application.timeoutlen, application.ttimeoutlen = 0.1, 0.05
        try:
            return application.run(pre_run=lambda: decide(None))  # what it wants to know from the start
        except EOFError:
            return Action("back")


def _bindings(press: Callable[[KeyPressEvent, str, str], None], keys: Keymap) -> KeyBindings:
    """Every key the picker knows, any other printable character, and pasted text."""
    bindings = KeyBindings()

    def named(name: str) -> Callable[[KeyPressEvent], None]:
        return lambda event: press(event, name, "")

    for sequence, name in KEY_NAMES.items():
        bindings.add(*sequence)(named(name))
    known = {*KEY_NAMES.values()}
    for name in keys.own:
        if len(name) > 1 and name not in known:
            bindings.add(name)(named(name))

    @bindings.add(Keys.Any)
    def _character(event: KeyPressEvent) -> None:
        if event.data and event.data.isprintable():
            press(event, "char", event.data)

    @bindings.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        if text:
            press(event, "paste", text)

    return bindings
