"""The answer view as a state machine: keys in, an Action out. It knows no terminal; screen.py draws it and feeds it keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from lawf_repl.errors import LawfError
from lawf_repl.records import Token
from lawf_repl.ui.keys import DEFAULT, Keymap
from lawf_repl.ui.layout import Chunk, groups, token_names, wrap
from lawf_repl.ui.motion import Line, least_sure, starts_word
from lawf_repl.ui.port import Action, Lookup
from lawf_repl.ui.render import AlternativeRow, alternative_rows
from lawf_repl.ui.theme import UNSURE

Mode = Literal["view", "alternatives", "fix", "go_on", "keys"]
COMMAND = "/"  # typed in the view it begins a command: it leaves for the line; the fix key begins a fix with it
MORE = 30  # alternatives fetched when the recorded ones are scrolled past


@dataclass(frozen=True, slots=True)
class Question:
    """Something slow that the view wants to know."""

    kind: Literal["preview", "alternatives", "reference"]
    position: int = 0
    text: str = ""


class Picker:
    """The answer view's whole state. `press` is the only way to change it, but for `resize` and `answer`."""

    def __init__(self, tokens: Sequence[Token], lookup: Lookup, *, cursor: int | None = None, note: str = "",
                 fixed: frozenset[int] = frozenset(), keys: Keymap = DEFAULT) -> None:
        self.tokens = tuple(tokens)
        self.lookup = lookup
        self.fixed = fixed
        self.keys = keys
        self.note = note
        self.reference: tuple[float, ...] | None = None  # the base's p of each token, where an adapter gave some of them
        self.mode: Mode = "view"
        self.line = Line()
        self.lead = ""
        self.chips: tuple[Token, ...] = ()
        self.chip_note = ""
        self.rows: list[AlternativeRow] = []
        self.selected = 0
        self.width, self.height = 80, 24
        self.spans = groups(self.tokens)
        self.lines: list[list[Chunk]] = wrap(self.tokens, self.width - 3)
        self.cursor = least_sure(self.tokens, 0, fixed) if cursor is None else max(0, min(cursor, len(self.tokens) - 1))
        self._question: Question | None = Question("reference")
        self._more_asked = False
        self._motions: dict[str, Callable[[], None]] = {
            "left": lambda: self._step(-1), "right": lambda: self._step(1),
            "up": lambda: self._vertical(-1), "down": lambda: self._vertical(1),
            "page_up": lambda: self._vertical(-10), "page_down": lambda: self._vertical(10),
            "next_word": lambda: self._word(1), "previous_word": lambda: self._word(-1),
            "line_start": lambda: self._line_end(0), "line_end": lambda: self._line_end(-1),
            "first": lambda: self._go(0), "last": lambda: self._go(len(self.tokens) - 1),
            "next_unsure": lambda: self._unsure(1), "previous_unsure": lambda: self._unsure(-1),
        }

    @property
    def token(self) -> Token | None:
        """The token under the cursor; None in an empty answer."""
        return self.tokens[self.cursor] if self.tokens else None

    @property
    def end_position(self) -> int:
        """Where the answer ends: at its end-of-turn token, or behind its last token."""
        return len(self.tokens) - 1 if self.tokens and self.tokens[-1].special else len(self.tokens)

    @property
    def unfinished(self) -> bool:
        """Whether the answer did not come to its end: stopped by hand, or at the most tokens allowed."""
        return not (self.tokens and self.tokens[-1].special)

    @property
    def edit_position(self) -> int:
        """The position from which a typed text replaces what stands there."""
        return self.end_position if self.mode == "go_on" else self.character[0]

    @property
    def character(self) -> tuple[int, int]:
        """First and last token of the character under the cursor."""
        return self.spans[self.cursor] if self.tokens else (0, 0)

    @property
    def name(self) -> str:
        """What the token under the cursor is called on its own."""
        return token_names(self.tokens, self.lookup.token_bytes)[self.cursor]

    @property
    def full_text(self) -> str:
        """What a confirmed fix puts there, its leading space included."""
        return self.lead + self.line.text

    def resize(self, width: int, height: int) -> None:
        """Lay the answer out for another terminal size."""
        if (width, height) != (self.width, self.height):
            self.width, self.height = width, height
            self.lines = wrap(self.tokens, width - 3)

    def take_question(self) -> Question | None:
        """What the view wants to know, once."""
        question, self._question = self._question, None
        return question

    def answer(self, question: Question) -> None:
        """Look a question up, slowly, and show the result if it is still wanted; may run in another thread."""
        try:
            if question.kind == "reference":
                self.reference = self.lookup.reference()
                return
            if question.kind == "alternatives":
                found = self.lookup.alternatives(question.position, MORE)
                token = self.tokens[question.position]
                if self.mode == "alternatives" and question.position == self.cursor and len(found) > len(token.alternatives):
                    self.rows = alternative_rows(token, found, self.name)
                return
            chips = self.lookup.preview(question.position, question.text)
        except LawfError as error:
            self.chips, self.chip_note = (), str(error)
            return
        if self.mode in ("fix", "go_on") and question.text == self.full_text:
            self.chips, self.chip_note = chips, ""

    def press(self, key: str, data: str = "") -> Action | None:
        """One key by its name, or `char` and `paste` with their text; an Action ends the view."""
        self.note = ""
        if key in ("interrupt", "eof"):
            return Action("back")
        if self.mode == "keys":
            self.mode = "view"
            return None
        if self.mode == "alternatives":
            return self._press_alternatives(key, data)
        if self.mode in ("fix", "go_on"):
            return self._press_text(key, data)
        return self._press_view(key, data)

    def _press_view(self, key: str, data: str) -> Action | None:
        name = None if key == "paste" else self.keys.action(data if key == "char" else key)
        simple: dict[str | None, Action] = {"back": Action("back"), "undo": Action("undo"), "redo": Action("redo"), "accept": Action("accept"),
                                            "train": Action("train")}
        if name in simple:
            return simple[name]
        if name == "keys":
            self.mode = "keys"
        elif name == "go_on":
            self._start_text("go_on", "")
        elif name is None and (key, data) == ("char", COMMAND):
            return Action("back", text=COMMAND)
        elif not self.tokens:
            self.note = f"the answer is empty: {self.keys.shown('go_on')} goes on with a text, {self.keys.shown('back')} leaves"
        elif name in self._motions:
            self._motions[name]()
        elif name == "others":
            self.mode, self.selected, self._more_asked = "alternatives", 0, False
            token = self.tokens[self.cursor]
            self.rows = alternative_rows(token, token.alternatives, self.name)
        elif name in ("delete", "end_here"):
            return self._cut(name)
        elif name == "fix":
            self._start_text("fix", "")
        elif key in ("char", "paste"):
            self._start_text("fix", data)
        return None

    def click(self, what: str, index: int) -> Action | None:
        """The mouse on a token of the answer ("token"), or on one of the alternatives ("row")."""
        self.note = ""
        if what == "row" and self.mode == "alternatives":
            return self._take(index)
        if what == "token" and self.mode in ("view", "alternatives") and 0 <= index < len(self.tokens):
            self.mode = "view"
            self._go(index)
        return None

    def _cut(self, name: str) -> Action | None:
        first, last = self.character
        if self.tokens[self.cursor].special and self.cursor >= self.end_position:
            more = self.keys.shown("go_on")
            self.note = f"the answer ends here already: {more} goes on" if name == "end_here" else f"to remove the end, go on with {more} and a text"
            return None
        return Action("end", first) if name == "end_here" else Action("delete", first, count=last - first + 1)

    def _press_alternatives(self, key: str, data: str) -> Action | None:
        name = data if key == "char" else key
        if name in ("escape", "q", "left", "h"):
            self.mode = "view"
        elif name in ("down", "j", "tab"):
            self.selected = min(self.selected + 1, len(self.rows) - 1)
            if self.selected >= len(self.rows) - 2 and not self._more_asked:
                self._more_asked = True
                self._question = Question("alternatives", self.cursor)
        elif name in ("up", "k"):
            self.selected = max(self.selected - 1, 0)
        elif self.keys.action(name) == "fix":
            self._start_text("fix", "")
        elif name == "enter":
            return self._take(self.selected)
        elif key == "char" and data.isdecimal() and data.isascii() and data != "0":
            return self._take(int(data) - 1)
        return None

    def _take(self, index: int) -> Action | None:
        row = self.rows[index] if 0 <= index < len(self.rows) else None
        if row is None or row.alternative is None:
            self.note = "no such alternative" if row is None else "this row is the mass of all others: c types another text"
        elif row.current:
            self.note = "this token stands there already"
        else:
            return Action("pick", self.cursor, token_id=row.alternative.id)
        return None

    def _start_text(self, mode: Mode, text: str) -> None:
        self.mode, self.line, self.chips, self.chip_note = mode, Line(), (), ""
        try:
            self.lead = "" if mode == "go_on" else self.lookup.lead(self.edit_position)
        except LawfError as error:
            self.mode, self.note = "view", str(error)
            return
        if not (text == " " and self.lead):  # the space key at a word is the space that is shown already
            self.line.insert(text)
        self._ask_preview()

    def _press_text(self, key: str, data: str) -> Action | None:
        if key == "escape":
            self.mode, self._question = "view", None
            return None
        if key == "enter":
            return self._confirm()
        if key in ("tab", "lead"):
            self.lead = "" if self.lead else (self.lookup_lead() or " ")
        elif key == "newline":
            self.line.insert("\n")
        elif key == "char" and data == " " and self.lead and not self.line.text:
            return None  # the space that is shown already
        elif key in ("char", "paste"):
            self.line.insert(data)
        elif not self.line.press(key):
            return None
        self._ask_preview()
        return None

    def lookup_lead(self) -> str:
        """The whitespace a fix starts with by default; a space where a text goes on."""
        return " " if self.mode == "go_on" else self.lookup.lead(self.edit_position)

    def _confirm(self) -> Action | None:
        if not self.line.text and self.mode == "go_on" and self.unfinished:
            return Action("go_on", self.end_position)
        if not self.line.text:
            known = "the answer stays as it is" if self.mode == "go_on" else f"{self.keys.shown('delete')} deletes a token"
            self.mode, self.note, self._question = "view", f"nothing typed: {known}", None
            return None
        if self.mode == "go_on":
            return Action("go_on", self.end_position, text=self.full_text)
        return Action("replace", self.edit_position, text=self.full_text)

    def _ask_preview(self) -> None:
        self.chip_note = ""
        if self.line.text:
            self._question = Question("preview", self.edit_position, self.full_text)
        else:
            self.chips, self._question = (), None

    def _go(self, position: int) -> None:
        self.cursor = max(0, min(position, len(self.tokens) - 1))

    def _step(self, by: int) -> None:
        self._go(self.cursor + by)

    def _word(self, by: int) -> None:
        position = self.cursor + by
        while 0 < position < len(self.tokens) - 1 and not starts_word(self.tokens, position):
            position += by
        self._go(position)

    def _unsure(self, by: int) -> None:
        count = len(self.tokens)
        for distance in range(1, count + 1):
            position = (self.cursor + by * distance) % count
            if self.tokens[position].p < UNSURE:
                wrapped = (position - self.cursor) * by <= 0
                self.note = ("the only unsure token" if position == self.cursor else "from the other end") if wrapped else ""
                self.cursor = position
                return
        self.note = "no token below p 0.5"

    def place(self) -> tuple[int, int]:
        """Line and cell column of the cursor in the layout."""
        shown = self.character[1]
        for number, line in enumerate(self.lines):
            column = 0
            for chunk in line:
                if chunk.position == shown:
                    return number, column
                column += cell_len(chunk.text)
        return len(self.lines) - 1, 0

    def _vertical(self, by: int) -> None:
        number, column = self.place()
        step = 1 if by > 0 else -1
        target = max(0, min(number + by, len(self.lines) - 1))
        while 0 < target < len(self.lines) - 1 and not self.lines[target]:
            target += step
        line, start, best = self.lines[target], 0, self.cursor
        for chunk in line:
            if start <= column:
                best = chunk.position
            start += cell_len(chunk.text)
        if target != number:
            self._go(self.spans[best][0])

    def _line_end(self, end: int) -> None:
        line = self.lines[self.place()[0]]
        if line:
            self._go(self.spans[line[end].position][0])
