"""The line in which prompts and commands are typed: editing, history, completion, and the bar under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.cursor_shapes import DynamicCursorShapeConfig, ModalCursorShapeConfig
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.vi_state import InputMode
from prompt_toolkit.utils import is_dumb_terminal
from rich.cells import cell_len

from lawf_repl.records import Progress
from lawf_repl.ui.completion import CommandCompleter, Offer
from lawf_repl.ui.layout import visible
from lawf_repl.ui.port import SessionPort
from lawf_repl.ui.render import progress_text, shorten
from lawf_repl.ui.terminal import Loader
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.verbs import adapter_word

MODES = {InputMode.INSERT: "insert", InputMode.INSERT_MULTIPLE: "insert", InputMode.REPLACE: "replace", InputMode.REPLACE_SINGLE: "replace"}


@dataclass
class Status:
    """What the bar under the line says beside what the session itself knows."""

    model_name: str
    anchors: int = 0


class InputLine:
    """The prompt. Enter sends, Alt-Enter and pasted newlines make lines, Ctrl-R searches, F4 changes between emacs and vi keys,
    Ctrl-X Ctrl-E (in vi mode v) opens $EDITOR."""

    def __init__(self, loader: Loader, theme: Theme, status: Status, history: History, vi: bool = False,
                 saved: Callable[[], Iterable[Offer]] = tuple, loaded: Callable[[SessionPort], None] = lambda session: None) -> None:
        """`loaded` is called, and may print, when a session that there is something to say of is there while the prompt stands."""
        self.loader, self.theme, self.status, self.loaded = loader, theme, status, loaded
        self.abandoned = False  # whether Ctrl-C took a text away, and not only the empty line
        self._prompt: PromptSession[str] = PromptSession(
            history=history, completer=CommandCompleter(lambda: loader.session, saved), style=theme.prompt_toolkit(), multiline=True,
            complete_while_typing=not theme.plain, enable_open_in_editor=True, tempfile_suffix=".txt", key_bindings=_bindings(),
            prompt_continuation=lambda width, line, wrapped: [("class:quiet", "  " if wrapped else "· ")],
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            cursor=DynamicCursorShapeConfig(lambda: ModalCursorShapeConfig() if get_app().editing_mode is EditingMode.VI else None))
        self._prompt.app.after_render += lambda application: loader.begin()
        self._prompt.app.ttimeoutlen = 0.05  # Esc counts at once, as vi's users expect; what Alt sends comes in one piece

    def read(self, default: str) -> str:
        """One prompt or command. Raises KeyboardInterrupt, and EOFError also where the model could not be loaded."""
        self.abandoned = False
        if is_dumb_terminal():  # prompt_toolkit reads from it without drawing this prompt
            self.loader.begin()
        shown = [("", visible(default))] if default and is_dumb_terminal() else []  # there the prompt does not show it by itself
        try:
            return self._prompt.prompt([("class:prompt", "› "), *shown], default=default, pre_run=self._watch_loading,
                                       bottom_toolbar=None if self.theme.plain else self._toolbar)
        except KeyboardInterrupt:
            self.abandoned = bool(self._prompt.default_buffer.text)
            raise

    def _watch_loading(self) -> None:
        """Redraw the bar while the model comes; leave the prompt when it will never be there."""
        application = get_app()

        async def watch() -> None:
            while not self.loader.done:
                await asyncio.sleep(0.05)
                if self.loader.progress is not None:
                    application.invalidate()
            if self.loader.error is not None and application.is_running and not application.is_done:
                application.exit(exception=EOFError)
            elif (session := self.loader.session) is not None and (session.nodes or session.notes) and not self.theme.plain:
                await run_in_terminal(lambda: self.loaded(session))
            application.invalidate()

        if not self.loader.done or self.loader.error is not None:
            application.create_background_task(watch())

    def _toolbar(self) -> StyleAndTextTuples:
        application = get_app()
        vi = MODES.get(application.vi_state.input_mode, "normal") if application.editing_mode is EditingMode.VI else ""
        return [("", toolbar_text(self.loader.session, self.loader.progress, self.status, vi, application.output.get_size().columns))]


def toolbar_text(session: SessionPort | None, progress: Progress | None, status: Status, vi: str, width: int) -> str:
    """One line of at most `width` cells: what there is no room for is left out from the end. `vi` is the mode of vi's keys, if they are on."""
    hints = ["/ commands", "alt-enter new line", f"F4 {'emacs' if vi else 'vi'} keys", "Ctrl-D leaves"]
    more: list[str] = []
    if session is None:
        coming = progress_text(progress) if progress and progress.done < progress.of else f"loading {visible(status.model_name)} …"
        parts = [coming, "you can type already"]
    else:
        parts = [shorten(visible(session.model_name), max(12, width // 3)), str(session.device), f"adapter {adapter_word(session)}",
                 f"{status.anchors} anchor{'' if status.anchors == 1 else 's'}"]
        more += [f"vi {vi}"] if vi else []
        more += [f"turn {session.turn}"] if session.turn > 1 else []
        more += [f"cache {session.cached}"] if session.cached else []
    text, first = "", cell_len(hints[0]) + 3
    for separator, part, room in [(" · ", part, 0) for part in parts] + [(" · ", part, first) for part in more] + [("   ", hints[0], 0)] + \
            [("  ", hint, 0) for hint in hints[1:]]:
        longer = f"{text}{separator}{part}" if text else f" {part}"
        if cell_len(longer) + room < width:
            text = longer
        elif not room:
            break
    return text or " "


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    emacs = Condition(lambda: get_app().editing_mode is EditingMode.EMACS)

    @bindings.add("enter", filter=~is_searching)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=emacs)
    @bindings.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    # What Alt sends comes in one piece: the key is in the queue behind the escape. An Esc that came alone is no half of
    # anything, and what is typed after it is text: without this, prompt_toolkit takes Esc and / within a second for Alt-/.
    alone = Condition(lambda: not get_app().key_processor.input_queue)

    @bindings.add("escape", filter=emacs & alone & ~is_searching, eager=True)
    def _nothing(event: KeyPressEvent) -> None:
        pass

    @bindings.add("f4")
    def _change(event: KeyPressEvent) -> None:
        event.app.editing_mode = EditingMode.EMACS if event.app.editing_mode is EditingMode.VI else EditingMode.VI

    return bindings
