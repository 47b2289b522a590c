"""What takes time, with a live view that Ctrl-C ends: streaming an answer, correcting, training, comparing. Part of app.py's printing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

from prompt_toolkit import prompt
from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from lawf_repl.errors import UsageError
from lawf_repl.records import Node, Rerun, Token, TrainStep
from lawf_repl.ui.compare import comparison, scorecard_table, sentence
from lawf_repl.ui.layout import piece, visible
from lawf_repl.ui.port import Action, SessionPort, Stop
from lawf_repl.ui.render import answer_view, percent, progress_text, shorten, training_panel
from lawf_repl.ui.terminal import Interruptible, Loader
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.tree import correction_text, reuse_text

REDRAWS = 12  # of a live view, in a second, by a thread of its own: what it waits for may take long
SAY_SECONDS = 2.0  # between two lines of a training where nothing may move


def waiting(what: str, console: Console, theme: Theme) -> AbstractContextManager[object]:
    """A spinner that says what is waited for; one line where nothing may move."""
    if theme.plain or not console.is_terminal:
        console.print(Text(f"{what} …"))
        return nullcontext()
    return console.status(Text(what, theme.rich("quiet")), spinner="dots", spinner_style=theme.rich("accent"))


def load(loader: Loader, name: str, stop: Stop, console: Console, theme: Theme) -> None:
    """Wait until the model is there, saying how far it is."""
    if theme.plain or not console.is_terminal:
        console.print(Text(visible(f"loading {name} …")))
        while not loader.done and not stop():
            loader.wait(0.05)
        return
    with console.status(Text(visible(f"loading {name}"), theme.rich("quiet")), spinner="dots", spinner_style=theme.rich("accent")) as status:
        while not loader.done and not stop():
            loader.wait(0.05)
            progress = loader.progress if loader.progress and loader.progress.done < loader.progress.of else None  # what follows takes no bar
            told = f": {progress_text(progress)}" if progress else ""
            status.update(Text(f"loading {visible(name)}{told}", theme.rich("quiet")))


def stream(start: Callable[[Stop], Iterator[Token]], kept: tuple[Token, ...], console: Console, theme: Theme) -> None:
    """Show tokens as they come, behind those that were kept; Ctrl-C stops. The live view is erased: the answer view takes its place."""
    tokens = list(kept)
    with Interruptible() as stop:
        if theme.plain:
            for token in chain(kept, start(stop)):
                console.print(Text(piece(token), end=""), end="", soft_wrap=True)
            console.print()
            return
        spinner = Spinner("dots", Text("reading the prompt", theme.rich("quiet")), style=theme.rich("accent"))

        def view() -> RenderableType:
            return _tail(tuple(tokens), console, theme) if tokens else spinner

        with Live(get_renderable=view, console=console, transient=True, refresh_per_second=REDRAWS):
            for token in start(stop):
                tokens.append(token)


def _tail(tokens: Sequence[Token], console: Console, theme: Theme) -> Text:
    """The last lines of an answer that is being written: what fits on the screen."""
    lines = answer_view(tokens, theme, console.width).split("\n", allow_blank=True)
    return Text("\n", no_wrap=True).join(list(lines)[-max(3, console.height - 4):])


def correct(session: SessionPort, action: Action, before: Node, console: Console, theme: Theme) -> None:
    """Do one correction and stream what the model makes of it."""
    position = action.position
    verbs: dict[str, Callable[[Stop], Iterator[Token]]] = {
        "replace": lambda stop: session.replace(position, action.text, stop),
        "pick": lambda stop: session.pick(position, action.token_id, stop),
        "delete": lambda stop: session.delete(position, action.count, stop),
        "end": lambda stop: session.end(position, stop),
        "go_on": lambda stop: session.go_on(action.text, stop),
    }
    if action.kind not in verbs:
        raise UsageError(f"{action.kind} is no correction")
    stream(verbs[action.kind], before.completion.tokens[:position], console, theme)


def correction_line(before: Node, after: Node, theme: Theme) -> Text:
    """What a correction did and what it cost, in one line for the scrollback."""
    line = Text("  ✎ ", theme.rich("accent"))
    return line.append(correction_text(before, after, theme)).append(f"   {reuse_text(after.completion.timing)}", theme.rich("quiet"))


def prepare(session: SessionPort, stop: Stop, console: Console, theme: Theme) -> None:
    """What the base answers before a training, with a line that says how far it is; Ctrl-C ends it."""
    if theme.plain or not console.is_terminal:
        said = ""
        for progress in session.prepare(stop):
            if progress.what != said:
                said = progress.what
                console.print(Text(f"{said} …"))
        return
    with console.status(Text("preparing", theme.rich("quiet")), spinner="dots", spinner_style=theme.rich("accent")) as status:
        for progress in session.prepare(stop):
            count = f": {progress.done} of {progress.of}" if progress.of > 1 else ""
            status.update(Text(f"{progress.what}{count}", theme.rich("quiet")))


def train(session: SessionPort, console: Console, theme: Theme) -> bool:
    """Train with one live panel; True if there is an adapter to look at, False if the user dropped it."""
    anchors = [anchor for case in session.cases for anchor in case.anchors]
    target, limits = session.settings.target_p, (session.settings.rounds, session.settings.max_seconds)
    steps: list[TrainStep] = []
    began = time.monotonic()

    def panel() -> RenderableType:
        return training_panel(anchors, tuple(steps), None, theme, target_p=target, width=console.width, limits=limits,
                              elapsed=time.monotonic() - began)

    with Interruptible() as stop:
        prepare(session, stop, console, theme)
        if stop():
            console.print(Text("interrupted before the first step: nothing was trained; /train goes on", theme.rich("quiet")))
            return False
        if theme.plain or not console.is_terminal:
            said = time.monotonic()
            for step in session.train(stop):
                steps.append(step)
                if time.monotonic() - said >= SAY_SECONDS:
                    said = time.monotonic()
                    least = percent(min(step.anchor_p, default=1.0)).strip()
                    console.print(Text(f"step {step.step}  {step.seconds:.1f} s  loss {step.loss:.3g}  least anchor p {least}"))
        else:
            with Live(get_renderable=panel, console=console, transient=True, refresh_per_second=REDRAWS):
                for step in session.train(stop):
                    steps.append(step)
    result = session.training
    console.print()
    console.print(training_panel(anchors, steps, result, theme, target_p=target, width=console.width))
    if result is not None and result.stop_reason == "interrupted":
        return _goes_on(session, console, theme)
    return result is not None


def _goes_on(session: SessionPort, console: Console, theme: Theme) -> bool:
    """Ask what becomes of an interrupted training: no answer keeps it, and Ctrl-C once more keeps it without a comparison."""
    try:
        answer = prompt([("class:prompt", "keep the best so far, or discard it? [K/d] ")], style=theme.prompt_toolkit())
    except (KeyboardInterrupt, EOFError):
        console.print(Text("kept: /compare shows before and after, /undo takes it back", theme.rich("quiet")))
        return False
    if answer.strip().lower().startswith("d"):
        session.discard_training()
        console.print(Text("discarded: the adapter is as it was before", theme.rich("quiet")))
        return False
    return True


def mend(session: SessionPort, console: Console, theme: Theme) -> None:
    """Make what /compare found wrong part of what is trained, one line for each."""
    says = {"case": ("a case now", "good"), "held": ("held from now on", "good")}
    with Interruptible() as stop:
        done = session.mend(stop)
        with waiting("answering and correcting", console, theme):
            found = list(done)
    for what, check in found:
        text, look = says[what]
        console.print(Text(f"  {text}: ", theme.rich(look)).append(visible(check.prompt), theme.rich("title")))
        if what == "case":
            console.print(Text(f"    {shorten(visible(check.got), 60)} → {shorten(visible(check.expected), 60)}", theme.rich("quiet")))
    console.print(Text("/train trains all of it" if found else "interrupted: nothing was added", theme.rich("quiet")))


def compare_prompt(session: SessionPort, prompt: str, console: Console, theme: Theme) -> None:
    """One prompt without and with the adapter, whether it was trained or not."""
    with Interruptible() as stop:
        with waiting("answering with the adapter off and on", console, theme):
            before, after = session.both(prompt, stop)
        if stop():
            console.print(Text("interrupted", theme.rich("quiet")))
            return
    console.print()
    console.print(comparison(Rerun(prompt, before, after.text, after, True), theme))
    console.print()
    same = before.ids == after.ids
    console.print(Text("The same answer, token for token." if same else "The adapter changes this answer.", theme.rich("good" if same else "accent")))
    console.print()


def compare(session: SessionPort, console: Console, theme: Theme) -> None:
    """Before and after of every accepted prompt, the scorecard, and what it means."""
    if not session.cases:
        raise UsageError("nothing to compare yet: correct an answer, accept it, then /train")
    with Interruptible() as stop:
        with waiting("answering again, before and after", console, theme):
            reruns = session.rerun(stop)
        if stop():
            console.print(Text("interrupted: /compare does it again", theme.rich("quiet")))
            return
        console.print()
        for rerun in reruns:
            console.print(comparison(rerun, theme))
            console.print()
        with waiting("measuring what else changed", console, theme):
            card = session.scorecard(reruns, stop)
        if stop():
            console.print(Text("interrupted: what is missing here was not measured; /compare does it again", theme.rich("quiet")))
    console.print(scorecard_table(card, len(reruns), theme))
    fixed = bool(reruns) and all(rerun.fixed for rerun in reruns)
    console.print()
    weak = any(anchor.confidence < 1 for case in session.cases for anchor in case.anchors)
    reason = session.training.stop_reason if session.training else None
    console.print(Text(sentence(card, reruns, weak=weak, reason=reason), theme.rich("good" if fixed else "bad")))
    wrong, changed = (sum(not check.ok for check in checks) for checks in (card.paraphrases, card.neighbours))
    if wrong or changed:
        parts = [f"make the {wrong} wrong paraphrase{'s' * (wrong > 1)} cases of their own"] if wrong else []
        parts += [f"hold the {changed} changed neighbour{'s' * (changed > 1)}"] if changed else []
        console.print(Text(f"/mend and /train: {' and '.join(parts)}, and train again.", theme.rich("accent")))
    console.print()
