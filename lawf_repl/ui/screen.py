"""The answer view on a terminal: draws the picker's state inline and feeds it keys; erased when done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from rich.cells import cell_len

from lawf_repl.records import Token
from lawf_repl.ui.layout import token_label, visible
from lawf_repl.ui.picker import Picker
from lawf_repl.ui.port import Action
from lawf_repl.ui.render import bar, percent, shorten, token_look
from lawf_repl.ui.theme import Theme, probability_look

MENU_ROWS = 9
KEY_NAMES: dict[tuple[str, ...], str] = {
    ("left",): "left", ("right",): "right", ("up",): "up", ("down",): "down", ("enter",): "enter", ("escape",): "escape",
    ("tab",): "tab", ("backspace",): "backspace", ("delete",): "delete", ("home",): "home", ("end",): "end", ("c-a",): "home",
    ("c-e",): "end", ("c-u",): "kill", ("c-w",): "word", ("c-r",): "redo", ("c-c",): "interrupt", ("<sigint>",): "interrupt",
    ("c-d",): "eof", ("pageup",): "pageup", ("pagedown",): "pagedown", ("escape", " "): "lead", ("escape", "enter"): "newline",
}
HINTS = {
    "view": "enter others  c fix  x delete  e end  + go on  a accept  t train  ? keys",
    "alternatives": "1-9 or enter takes it  up/down  c types another text  esc back",
    "fix": "enter puts it there  tab leading space  alt-enter new line  esc cancels",
    "go_on": "enter goes on with it  tab leading space  alt-enter new line  esc cancels",
    "keys": "any key closes this",
}
KEYS_HELP = (
    ("arrows  h l  j k", "by token, by line"), ("w b   0 $   home end", "by word, ends of the line, ends of the answer"),
    ("n N", "next, previous unsure token (p < 0.5, underlined)"), ("enter", "other tokens that could stand here; 1-9 takes one"),
    ("c, or just type", "the text that should stand here; tab: leading space"),
    ("x   e   +", "delete, end the answer here, go on after its end"),
    ("u   Ctrl-R", "undo, redo"), ("a   t", "accept the answer, train"), ("q   esc   Ctrl-C", "back to the prompt"),
)
Row = list[tuple[str, str]]


def draw(picker: Picker) -> list[Row]:
    """The whole view as rows of (look, text), each no wider than the terminal; text is safe to show."""
    below = _below(picker)
    room = max(3, picker.height - len(below) - 3)
    answer = _answer_rows(picker)
    line = picker.place()[0]
    top = max(0, min(line - room // 2, len(answer) - room))
    hint = HINTS[picker.mode]
    if len(answer) > room:
        below[0].append(("quiet", f"   lines {top + 1}-{top + room} of {len(answer)}"))
    rows = [*answer[top:top + room], [], *below, [("quiet", "  " + (hint if not picker.note else ""))]]
    if picker.note:
        rows[-1] = [("accent", "  " + visible(picker.note))]
    return [_clip(row, picker.width - 1) for row in rows]


def _answer_rows(picker: Picker) -> list[Row]:
    first, last = picker.character
    rows: list[Row] = []
    editing = picker.mode in ("fix", "go_on")
    for line in picker.lines:
        row: Row = [("", "  ")]
        for chunk in line:
            look = token_look(picker.tokens[chunk.position], chunk.position in picker.fixed)
            if editing and chunk.position >= picker.edit_position:
                look = "dropped"
            elif not editing and first <= chunk.position <= last:
                look = "cursor"
            row.append((look, chunk.text))
        rows.append(row)
    return rows


def _below(picker: Picker) -> list[Row]:
    token = picker.token
    if picker.mode == "keys":
        return [[("accent", f"  {keys:<22}"), ("", meaning)] for keys, meaning in KEYS_HELP]
    if picker.mode in ("fix", "go_on"):
        return [_edit_row(picker), _chip_row(picker)]
    if token is None:
        return [[("quiet", "  (empty answer)")]]
    rows = [_status(picker, token)]
    if picker.mode == "alternatives":
        rows += _menu(picker)
    return rows


def _status(picker: Picker, token: Token) -> Row:
    first, last = picker.character
    label = shorten(token_label(token.text, token.special), max(8, picker.width - 56))
    if first != last:
        whole = token_label(picker.tokens[last].text)
        label = f"{picker.cursor - first + 1}/{last - first + 1} of {whole}"
    return [("quiet", f"  {picker.cursor}  "), (token_look(token), label),
            ("quiet", f"  id {token.id}  p {percent(token.p).strip()}  #{token.rank + 1}  entropy {token.entropy:.2f}")]


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
        rows.append([("quiet", number), (look, label), ("", f"  {percent(row.p)} "), ("bar", bar(row.p, 12)),
                     ("quiet", f" {rank}{' stands here' if row.current else ''}")])
    return rows


def _edit_row(picker: Picker) -> Row:
    name = "  fix    " if picker.mode == "fix" else "  go on  "
    row: Row = [("accent", name), ("bar", token_label(picker.lead) if picker.lead else "")]
    caret, text = picker.line.caret, picker.line.text
    room = max(8, picker.width - 16)
    left = visible(text[:caret])
    while cell_len(left) > room - 6:
        left = left[1:]
    right = visible(text[caret + 1:])
    under = visible(text[caret:caret + 1]) or " "
    return [*row, ("title", left), ("cursor", under), ("title", shorten(right, max(2, room - cell_len(left))))]


def _chip_row(picker: Picker) -> Row:
    if picker.chip_note:
        return [("bad", "         " + visible(picker.chip_note))]
    row: Row = [("", "         ")]
    for chip in picker.chips:
        row += [(probability_look(chip.p), token_label(chip.text, chip.special)),
                ("quiet", f" {percent(chip.p).strip()} #{chip.rank + 1}   ")]
    return row if picker.chips else [("quiet", "         the tokens of what you type appear here with p and rank")]


def _clip(row: Row, width: int) -> Row:
    """A row cut to the terminal's width, with … where something was left out."""
    if sum(cell_len(text) for _, text in row) <= width:
        return row
    clipped: Row = []
    room = width - 1
    for look, text in row:
        kept = text if cell_len(text) <= room else shorten(text, room + 1)[:-1]
        clipped.append((look, kept))
        room -= cell_len(kept)
        if kept != text:
            break
    return [*clipped, ("quiet", "…")]


def _fragments(picker: Picker) -> StyleAndTextTuples:
    size = get_app().output.get_size()
    picker.resize(size.columns, size.rows)
    fragments: StyleAndTextTuples = []
    for number, row in enumerate(draw(picker)):
        fragments += [("", "\n")] if number else []
        fragments += [(f"class:{look}" if look else "", text) for look, text in row]
    return fragments


def run_picker(picker: Picker, theme: Theme) -> Action:
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
            action = picker.press(name, data)
            if action is not None:
                application.exit(result=action)
            elif not serving:
                application.create_background_task(serve())

        application: Application[Action] = Application(
            layout=Layout(Window(FormattedTextControl(lambda: _fragments(picker), focusable=True, show_cursor=False),
                                 wrap_lines=False, always_hide_cursor=True, dont_extend_height=True)),
            key_bindings=_bindings(press), style=theme.prompt_toolkit(), full_screen=False, erase_when_done=True)
        application.timeoutlen, application.ttimeoutlen = 0.3, 0.05
        try:
            return application.run()
        except EOFError:
            return Action("back")


def _bindings(press: Callable[[KeyPressEvent, str, str], None]) -> KeyBindings:
    """Every key the picker knows, any other printable character, and pasted text."""
    bindings = KeyBindings()

    def named(name: str) -> Callable[[KeyPressEvent], None]:
        return lambda event: press(event, name, "")

    for keys, name in KEY_NAMES.items():
        bindings.add(*keys)(named(name))

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
