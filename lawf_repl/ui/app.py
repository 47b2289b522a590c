"""The loop of the terminal: prompt, answer, correct, accept, train, compare. The only place of the front that prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from lawf_repl.errors import LawfError, NothingToFix, UsageError
from lawf_repl.records import Case, Completion, Progress
from lawf_repl.ui import commands, exporting, work
from lawf_repl.ui.completion import Offer
from lawf_repl.ui.keys import DEFAULT, Keymap
from lawf_repl.ui.layout import token_label, visible
from lawf_repl.ui.line import InputLine, Status
from lawf_repl.ui.motion import least_sure
from lawf_repl.ui.picker import Picker
from lawf_repl.ui.port import Action, SessionPort, Stop
from lawf_repl.ui.render import anchors_table, answer_view, least_sure_places
from lawf_repl.ui.screen import run_picker
from lawf_repl.ui.terminal import Interruptible, Loader, open_history
from lawf_repl.ui.theme import Theme, theme_for
from lawf_repl.ui.tree import replaced_text, sampled_text
from lawf_repl.ui.verbs import CORRECTIONS, REPORTS, adapter_text, current_node

Extra = Callable[[SessionPort, str, Stop, Theme], tuple[SessionPort, RenderableType]]  # of a command: the session to go on with, what to show
PLAIN_HINT = "/tokens shows positions; /fix POSITION TEXT corrects, /accept keeps, /train trains, /help lists all"
TRAINED, BEFORE, ITS = "the adapter of a training", "the adapter of the training before it", "its adapter"  # of which is said that it is in place
WAITS = {"probe": "the base answers it", "hold": "the base answers it"}  # commands that may take a while


@dataclass(frozen=True, slots=True)
class Options:
    """How the REPL looks and is operated."""

    plain: bool = False
    theme: str = "auto"
    vi: bool = False
    history: bool = True
    mouse: bool = True
    keys: Keymap = DEFAULT


def run_repl(load: Callable[[Callable[[Progress], None]], SessionPort], *, first_prompt: str | None, intro: str | None, options: Options,
             model_name: str = "the model", console: Console | None = None, extras: Mapping[str, Extra] = MappingProxyType({}),
             saved: Callable[[], Iterable[Offer]] = tuple, answered: Callable[[], None] = lambda: None) -> int:
    """The REPL from first prompt to goodbye; 0 when the user left, 2 when the model could not be loaded.

    `answered` is called when an answer stands, once: the user reads it, and what a training needs can be made ready meanwhile.
    """
    status = Status(model_name)

    def opened(report: Callable[[Progress], None]) -> SessionPort:
        session = load(report)
        with suppress(LawfError):  # it is told where it matters; here it would keep the session from standing
            status.anchors = anchor_count(session)
        return session

    loader = Loader(opened)
    theme = theme_for(options.plain, os.environ, options.theme)
    if console is None:
        console = Console(highlight=False, markup=False, emoji=False, no_color=not theme.colour or None,
                          color_system=None if theme.plain else "auto")
    return Repl(loader, console, theme.on(console.color_system), status, options, extras, saved, answered).run(first_prompt, intro)


def anchor_count(session: SessionPort) -> int:
    """Anchors so far: of the accepted answers, and of the answer that stands, which may take the place of one of them."""
    anchors = {case.prompt_ids: len(case.anchors) for case in session.cases}
    if session.node is not None and (here := session.anchors()):
        anchors[session.node.completion.prompt_ids] = len(here)
    return sum(anchors.values())


class Repl:
    """One run of the loop: what is loaded, what was accepted, and the line."""

    def __init__(self, loader: Loader, console: Console, theme: Theme, status: Status, options: Options, extras: Mapping[str, Extra],
                 saved: Callable[[], Iterable[Offer]], answered: Callable[[], None]) -> None:
        self.extras, self.warned = extras, ""
        self.answered: Callable[[], None] | None = answered
        self.loader = loader
        self.console = console
        self.theme = theme
        self.options = options
        self.status = status
        self.line = InputLine(loader, theme, status, open_history(options.history), options.vi, saved, self._tell_loaded)
        self.accepted_case: Case | None = None  # accepted, and not told yet
        self.replaced: Case | None = None       # another answer to its prompt, accepted before, whose place it took
        self.shown: Completion | None = None   # the answer that stands in the scrollback already
        self.told = self.hinted = False  # what the model's loading had to say, and what to do without a view: once
        self.waiting = ""  # what the next prompt begins with: a line whose wait for the model was interrupted, or a command begun in the view
        self._own: dict[str, Callable[[SessionPort], None]] = {
            "edit": self._edit_again, "accept": self._accept_here, "train": self.train,
            "mend": self.mend,
        }

    def say(self, text: str, look: str = "quiet") -> None:
        """One line to the user; whatever others wrote in it is made safe."""
        self.console.print(Text(visible(text, newlines=True), self.theme.rich(look)))

    def show(self, renderable: RenderableType) -> None:
        """A table or panel, with air around it."""
        self.console.print()
        self.console.print(renderable)
        self.console.print()

    def run(self, first_prompt: str | None, intro: str | None) -> int:
        """Read lines until the user leaves."""
        if intro:
            self.say(intro, "sure")
            self.console.print()
        default, interrupts = first_prompt or "", 0
        while True:
            try:
                line = self.line.read(default)
                interrupts = 0
                leave = self._handle(line)
                default, self.waiting = self.waiting, ""
            except KeyboardInterrupt:
                interrupts, default = 1 if self.line.abandoned else interrupts + 1, ""  # who gives up a text does not leave
                leave = interrupts > 1
                if not leave:
                    self.say("Ctrl-C again or Ctrl-D leaves")
            except EOFError:
                leave = True
            if self.loader.error is not None:
                self.say(f"lawf: {self.loader.error}", "bad")
                return self.loader.error.exit_code
            if leave:
                self.say("bye")
                return 0

    def _handle(self, line: str) -> bool:
        """One line: a prompt or a command; True leaves."""
        if not line.strip():
            return False
        try:
            request = commands.parse(line)
            command = request.command
            if command is not None and command.name == "quit":
                return True
            if command is not None and command.name == "help":
                self._help(request.argument)
                return False
            session = self._session()
            if session is None:
                if self.loader.error is None:
                    self.waiting = line
                    self.say("the model is still loading; enter waits for it again")
                return False
            self._tell_loaded(session)
            if command is None:
                self.ask(session, request.argument)
            else:
                self._command(session, command.name, request.argument)
        except NothingToFix as nothing:
            self.say(str(nothing))
        except (LawfError, OSError) as error:
            self.say(str(error), "bad")
        if self.loader.session is not None and (unsaved := self.loader.session.unsaved) != self.warned:
            self.warned = unsaved  # said once, and again when it is another
            self.say(unsaved or "everything is saved again", "bad" if unsaved else "quiet")
        return False

    def _tell_loaded(self, session: SessionPort) -> None:
        """What was opened, where it is a session out of a file, and what the model's loading had to say; once."""
        if not self.told:
            self.told = True
            if session.nodes:
                answers = f"{len(session.nodes)} answer{'' if len(session.nodes) == 1 else 's'}"
                self.say(f"opened {session.place}: {answers}, {len(session.cases)} accepted")
            for text in session.notes:
                self.say(text)

    def _session(self) -> SessionPort | None:
        """The session, once it is loaded; None if the wait was interrupted or in vain."""
        if not self.loader.done:
            with Interruptible() as stop:
                work.load(self.loader, self.status.model_name, stop, self.console, self.theme)
        return self.loader.session

    def ask(self, session: SessionPort, prompt: str) -> None:
        """The answer to the conversation's next prompt, streamed, then opened for correction."""
        self.shown = None
        work.stream(lambda stop: session.follow_up(prompt, stop), (), self.console, self.theme)
        self._streamed(session)
        if self.answered is not None:
            self.answered()
            self.answered = None
        self.edit(session)

    def _streamed(self, session: SessionPort) -> None:
        """Without a view that takes its place, what was streamed stands in the scrollback."""
        if self.theme.plain and session.node is not None:
            self.shown = session.node.completion

    def _edit_again(self, session: SessionPort) -> None:
        self.shown = None
        self.edit(session)

    def edit(self, session: SessionPort) -> None:
        """The answer view, again and again until the user leaves it; without a terminal that can draw it, a hint instead."""
        current_node(session)
        self._count(session)
        if self.theme.plain:
            self._print_answer(session)
            self._tell(session)
            return
        cursor, note = None, self._finish_note(session)
        while (node := session.node) is not None:
            picker = Picker(node.completion.tokens, session, cursor=cursor, note=note, fixed=node.fix_positions, keys=self.options.keys)
            action = run_picker(picker, self.theme, self.options.mouse)
            cursor, note = picker.cursor, ""
            try:
                if action.kind == "back":
                    self.waiting = action.text
                    break
                if action.kind == "train":
                    self.train(session, from_view=True)
                    return
                if action.kind == "accept":
                    self.accept(session)
                    train = self.options.keys.shown("train")
                    note = f"accepted: {self._accepted_anchors()} · {train} trains · /new, then one more prompt"
                    note += f" · {replaced_text(self.replaced)}" if self.replaced is not None else ""
                    continue
                note = self.apply(session, action) or self._finish_note(session)
                cursor = self._reopening(session, cursor)
            except LawfError as error:
                note = str(error)
        self._print_answer(session)
        self._print_accepted(session)

    def _tell(self, session: SessionPort) -> None:
        """Without a view: where the model was unsure, how the answer ended, and once what can be done."""
        if tokens := current_node(session).completion.tokens:
            self.say(f"least sure: {least_sure_places(tokens)}")
        if note := self._finish_note(session):
            self.say(note)
        if not self.hinted:
            self.hinted = True
            self.say(PLAIN_HINT)

    def apply(self, session: SessionPort, action: Action) -> str:
        """Do one correction and stream what the model makes of it; what there is to say about it."""
        if action.kind == "goto":
            stood = adapter_text(session, TRAINED), session.training
            session.goto(action.position)
            self._count(session)
            stands = adapter_text(session, TRAINED), session.training
            return "" if stands == stood else f"as it was then: {stands[0]}"
        if action.kind in ("undo", "redo"):
            left = session.node
            moved = session.undo() if action.kind == "undo" else session.redo()
            self._count(session)
            training = left if action.kind == "undo" else session.node
            if moved and training is not None and training.training is not None:
                undone = action.kind == "undo"
                return f"the training is undone: {adapter_text(session, BEFORE)}" if undone else f"the training is back: {adapter_text(session, ITS)}"
            return "" if moved else f"nothing to {action.kind}"
        before = current_node(session)
        work.correct(session, action, before, self.console, self.theme)
        self._streamed(session)
        self._count(session)
        if session.node is not None and session.node is not before:
            self.console.print(work.correction_line(before, session.node, self.theme), no_wrap=True, overflow="ellipsis")
        return ""

    def accept(self, session: SessionPort) -> None:
        """Keep the answer for training; what was accepted is printed when the answer view is left."""
        before = session.cases
        self.accepted_case = case = session.accept()
        self.replaced = next((one for one in before if one not in session.cases and one.completion_ids != case.completion_ids), self.replaced)
        self._count(session)

    def _accept_here(self, session: SessionPort) -> None:
        self.accept(session)
        self._print_answer(session)
        self._print_accepted(session)

    def _accepted_anchors(self) -> str:
        anchors = self.accepted_case.anchors if self.accepted_case is not None else ()
        if len(anchors) != 1:
            return f"{len(anchors)} anchors"
        return f"{token_label(anchors[0].rejected)} → {token_label(anchors[0].chosen)} at {anchors[0].position}"

    def _print_accepted(self, session: SessionPort, training: bool = False) -> None:
        """The anchors of what was accepted last, once; what comes next, unless that is `training`."""
        if self.accepted_case is not None:
            self.console.print(Padding(anchors_table(self.accepted_case.anchors, self.theme), (0, 0, 0, 2)))
            self.console.print()
            prompts = "1 prompt" if len(session.cases) == 1 else f"{len(session.cases)} prompts"
            if not training:
                self.say(f"accepted: {prompts} to train on; /train trains, /new and another prompt adds a case")
            if self.replaced is not None:
                self.say(replaced_text(self.replaced), "accent")
            if sampled := session.sampled():
                self.say(sampled_text(sampled))
            for conflict in session.conflicts():
                self.say(conflict, "bad")
        self.accepted_case = self.replaced = None

    def train(self, session: SessionPort, from_view: bool = False) -> None:
        """Train and show before and after; what stands in the view, or is the only answer, is accepted first."""
        if (from_view or not session.cases) and not self._is_accepted(session) and session.anchors():
            self.accept(session)
        if not session.cases:
            raise NothingToFix("nothing to train: correct an answer and accept it first")
        if from_view or self.accepted_case is not None:  # else another answer is trained than the one that stands, or it was shown already
            self._print_answer(session)
        self._print_accepted(session, training=True)
        if work.train(session, self.console, self.theme):
            work.compare(session, self.console, self.theme)

    def mend(self, session: SessionPort) -> None:
        """Train on what the last comparison found wrong, too."""
        work.mend(session, self.console, self.theme)
        self.shown = session.node.completion if session.node is not None else None  # a line said what became of it
        self._count(session)

    def _print_answer(self, session: SessionPort) -> None:
        """The answer into the scrollback, once for each state of it."""
        if session.node is not None and session.node.completion is not self.shown:
            self.shown = session.node.completion
            tokens = session.node.completion.tokens
            self.console.print(answer_view(tokens, self.theme, self.console.width, fixed=session.node.fix_positions))
            self.console.print()

    def _reopening(self, session: SessionPort, cursor: int) -> int:
        """Where the view opens after a correction: the least sure token behind it."""
        node = session.node
        if node is None:
            return cursor
        start = cursor if node.correction is None else node.correction.position
        return least_sure(node.completion.tokens, start, node.fix_positions)

    def _is_accepted(self, session: SessionPort) -> bool:
        answer = session.node.completion if session.node is not None else None
        return answer is not None and any((case.prompt_ids, case.completion_ids) == (answer.prompt_ids, answer.ids) for case in session.cases)

    def _count(self, session: SessionPort) -> None:
        self.status.anchors = anchor_count(session)

    def _command(self, session: SessionPort, name: str, argument: str) -> None:
        """One command: of this loop, a correction, or something to show."""
        if name in self._own:
            self._own[name](session)
        elif name == "compare" and argument.strip():
            work.compare_prompt(session, argument.strip(), self.console, self.theme)
        elif name == "export":
            exporting.export(session, argument, self.console, self.theme)
        elif name == "compare":
            work.compare(session, self.console, self.theme)
        elif name in CORRECTIONS:
            action, before = CORRECTIONS[name](session, argument), session.node
            if note := self.apply(session, action):
                self.say(note)
            if action.kind == "goto" or session.node is not before:
                self.edit(session)
        elif name in REPORTS:
            with work.waiting(WAITS[name], self.console, self.theme) if name in WAITS and argument.strip() else nullcontext():
                shown = REPORTS[name](session, argument, self.theme)
            self.show(shown)
        elif name in self.extras:
            with Interruptible() as stop, work.waiting(f"/{name}", self.console, self.theme):
                self.loader.session, shown = self.extras[name](session, argument, stop, self.theme)
            self.show(shown)
            self._count(self.loader.session)
        else:
            raise UsageError(f"/{name} is not there in this program")

    def _help(self, argument: str) -> None:
        if argument:
            self.show(commands.help_line(commands.find(argument.strip().lstrip("/")), self.theme))
        else:
            self.show(commands.help_table(self.theme))

    def _finish_note(self, session: SessionPort) -> str:
        """What to say about an answer that did not end by itself."""
        answer = session.node.completion if session.node is not None else None
        if answer is None or answer.finish == "eos":
            return ""
        on = "/append" if self.theme.plain else f"{self.options.keys.shown('go_on')} enter"
        if answer.finish == "interrupted":
            return f"stopped before its end: {on} goes on"
        return f"cut at {len(answer.tokens)} tokens: /end {len(answer.tokens)} ends it; /set max_tokens, then {on} goes on"
