"""What the commands mean: corrections as Actions for the session, all else as something to show. Nothing is printed here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lawf_repl.config import rule_of
from lawf_repl.errors import UsageError
from lawf_repl.records import Node
from lawf_repl.ui import commands
from lawf_repl.ui.layout import token_names, visible
from lawf_repl.ui.port import Action, SessionPort
from lawf_repl.ui.render import alternative_rows, alternatives_table, anchors_table, tokens_table
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.tree import cases_view, tree_view

ASKED_ALTERNATIVES = 20


@dataclass(frozen=True)
class Wide:
    """A text that is laid out for the width it is shown in."""

    make: Callable[[int], Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.make(options.max_width)


def current_node(session: SessionPort, position: int = 0) -> Node:
    """The answer that stands; UsageError if there is none or it has no such position."""
    node = session.node
    if node is None:
        raise UsageError("there is no answer yet: type a prompt first")
    if position > len(node.completion.tokens):
        raise UsageError(f"expected a position up to {len(node.completion.tokens) - 1}, found {position}; /tokens shows them")
    return node


def _position(session: SessionPort, name: str, argument: str) -> tuple[int, str]:
    position, rest = commands.position_and_rest(commands.find(name), argument)
    current_node(session, position)
    return position, rest


def _fix(session: SessionPort, argument: str) -> Action:
    position, text = _position(session, "fix", argument)
    lead = "" if text[:1].isspace() else session.lead(position)
    return Action("replace", position, text=lead + text)


def _pick(session: SessionPort, argument: str) -> Action:
    position, text = _position(session, "pick", argument)
    node = current_node(session, position + 1)
    token = node.completion.tokens[position]
    rows = alternative_rows(token, session.alternatives(position, ASKED_ALTERNATIVES) or token.alternatives)
    number = int(text) if text.strip().isdecimal() else 0
    chosen = rows[number - 1].alternative if 0 < number <= len(rows) else None
    if chosen is None:
        raise UsageError(f"expected a number from 1 to {len(rows) - 1}, found {text!a}; /alternatives {position} shows them")
    return Action("pick", position, token_id=chosen.id)


def _delete(session: SessionPort, argument: str) -> Action:
    position, text = _position(session, "delete", argument)
    if text and not text.strip().isdecimal():
        raise UsageError(f"expected a number of tokens to delete, found {text!a}")
    return Action("delete", position, count=int(text or 1))


def _end(session: SessionPort, argument: str) -> Action:
    return Action("end", _position(session, "end", argument)[0])


def _append(session: SessionPort, argument: str) -> Action:
    tokens = current_node(session).completion.tokens
    ended = bool(tokens) and tokens[-1].special
    if not argument and ended:
        raise UsageError("expected /append TEXT: the answer came to its end, only one that did not goes on without a text")
    return Action("go_on", len(tokens) - ended, text=argument if not tokens or not argument or argument[0].isspace() else f" {argument}")


def _goto(session: SessionPort, argument: str) -> Action:
    current_node(session)
    if not argument.strip().isdecimal():
        raise UsageError(f"expected /goto NUMBER, found {argument!a}; /tree shows the numbers")
    return Action("goto", int(argument))


CORRECTIONS: dict[str, Callable[[SessionPort, str], Action]] = {
    "fix": _fix, "pick": _pick, "delete": _delete, "end": _end, "append": _append,
    "undo": lambda session, argument: Action("undo"), "redo": lambda session, argument: Action("redo"),
    "goto": _goto,
}


def _tokens(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    return tokens_table(current_node(session).completion.tokens, theme, session.token_bytes)


def _alternatives(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    position, _ = _position(session, "alternatives", argument)
    tokens = current_node(session, position + 1).completion.tokens
    found = session.alternatives(position, ASKED_ALTERNATIVES) or tokens[position].alternatives
    return alternatives_table(tokens[position], found, theme, token_names(tokens, session.token_bytes)[position])


def _anchors(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    current_node(session)
    return anchors_table(session.anchors(), theme)


def _tree(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    current_node(session)
    here = session.node.id if session.node else None
    return Wide(lambda width: tree_view(session.nodes, here, session.prompt_of, theme, width))


def _cases(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    verb, _, number = argument.strip().partition(" ")
    if verb == "drop" and number.strip().isdecimal():
        case = session.forget(int(number) - 1)
        return _quiet(f"not trained any more: {case.prompt}", theme)
    if argument.strip():
        raise UsageError(f"expected /cases {commands.find('cases').arguments}, found {argument!a}")
    return Wide(lambda width: cases_view(session.cases, theme, width))


def _need(argument: str, name: str) -> str:
    if not argument.strip():
        raise UsageError(f"expected /{name} {commands.find(name).arguments}")
    return argument.strip()


def _paraphrase(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.add_paraphrase(_need(argument, "paraphrase"))
    return _quiet("it must give the accepted answer too; /compare measures it", theme)


def _neighbour(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.add_neighbour(_need(argument, "neighbour"))
    return _quiet("its answer must not change; /compare measures it", theme)


def _probe(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.add_probe(_need(argument, "probe"))
    return _quiet("drift is measured on it too; /compare does", theme)


def _new(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.new_conversation()
    return _quiet("the next prompt starts a new conversation; accepted answers and the adapter stay", theme)


def _hold(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.hold(_need(argument, "hold"))
    return _quiet("the base's answer to it is held in every training from now on", theme)


def _confidence(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.set_setting("confidence", _need(argument, "confidence"))
    return _quiet(f"confidence of the next corrections: {figure(session.settings.confidence)}", theme)


def _adapter(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    verb, _, path = argument.strip().partition(" ")
    if verb == "save" and path.strip():
        return _quiet(f"adapter saved in {session.save_adapter(os.path.expanduser(path.strip()))}", theme)
    if verb in ("on", "off") and not path:
        session.switch_adapter(verb == "on")
        return _quiet(f"adapter {verb}", theme)
    if verb == "reset" and not path:
        session.reset_adapter()
        return _quiet("adapter dropped: the model is the base again", theme)
    raise UsageError(f"expected /adapter {commands.find('adapter').arguments}, found {argument!a}")


def _save(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    if argument.strip():
        return _quiet(f"session saved in {session.name(argument.strip())}", theme)
    place = f"saved as it happens in {session.place}" if session.place else "nothing to save yet: type a prompt first"
    return _quiet(session.unsaved or place, theme)


def _system(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    session.set_system(argument.strip())
    return _quiet("system prompt set for the next questions" if argument.strip() else "no system prompt any more", theme)


def _set(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    name, _, value = argument.strip().partition(" ")
    if name and not value.strip():
        raise UsageError("expected /set NAME VALUE; /set alone shows the settings")
    if name:
        session.set_setting(name, value.strip())
        return _quiet(f"{name} is now {value.strip()}", theme)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name in (*commands.SETTINGS, "system"):
        now = getattr(session.settings, name, None)
        table.add_row(Text(name, theme.rich("accent")), Text(visible("none" if now is None else figure(now) if isinstance(now, float) else f"{now}")),
                      Text(rule_of(name).meaning, theme.rich("quiet")))
    return table


def _model(session: SessionPort, argument: str, theme: Theme) -> RenderableType:
    return Text(visible(f"{session.model_name} on {session.device} in {session.dtype}, adapter {adapter_word(session)}"))


def adapter_word(session: SessionPort) -> str:
    """on, off, or none."""
    return "on" if session.adapter_on else "off" if session.has_adapter else "none"


def figure(value: float) -> str:
    """A number as short as one can write it and read the same number back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def adapter_text(session: SessionPort, trained: str) -> str:
    """Which adapter is in place and whether it is on; `trained` is what one is called that a training made."""
    if not session.has_adapter:
        return "no adapter is on"
    training = session.training
    which = f"{trained} ({training.steps} step{'' if training.steps == 1 else 's'})" if training else "the adapter that the session began with"
    return f"{which} is {'on' if session.adapter_on else 'off'}"


def _quiet(text: str, theme: Theme) -> Text:
    return Text(visible(text), theme.rich("quiet"))


REPORTS: dict[str, Callable[[SessionPort, str, Theme], RenderableType]] = {
    "tokens": _tokens, "tree": _tree, "cases": _cases, "alternatives": _alternatives, "anchors": _anchors,
    "new": _new, "probe": _probe, "paraphrase": _paraphrase, "neighbour": _neighbour, "hold": _hold,
    "confidence": _confidence, "adapter": _adapter, "save": _save, "system": _system, "set": _set, "model": _model,
}
