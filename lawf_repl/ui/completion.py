"""What the Tab key and the menu offer behind a slash: commands, their arguments and paths, each with what it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from lawf_repl.config import FIELDS, rule_of
from lawf_repl.store import SUFFIX
from lawf_repl.ui.commands import COMMANDS, Command, find_quietly
from lawf_repl.ui.layout import visible
from lawf_repl.ui.port import SessionPort
from lawf_repl.ui.render import shorten

Offer = tuple[str, str]  # a word, and what it means
MEANING = 60  # cells of what something means, at most
CHOICES = {"on": "the adapted model answers", "off": "the base answers", "reset": "take the adapter out", "save": "write it as a peft folder",
           "peft": "peft and transformers", "merged": "the whole model, adapter merged", "gguf": "llama.cpp", "ollama": "Ollama", "vllm": "vLLM",
           "drop": "do not train on it any more"}


class CommandCompleter(Completer):
    """Completes command names, and their arguments from what the session has."""

    def __init__(self, session: Callable[[], SessionPort | None] = lambda: None, saved: Callable[[], Iterable[Offer]] = tuple) -> None:
        """`saved` gives the names that /load knows."""
        self._session, self._saved = session, saved
        self._paths = PathCompleter(expanduser=True)
        self._files = PathCompleter(expanduser=True, file_filter=lambda path: os.path.isdir(path) or path.endswith(SUFFIX))

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Every command that begins like the line, or every word that its next argument can be."""
        line = document.text_before_cursor
        if not line.startswith("/") or line.startswith("//") or "\n" in line:
            return
        name, space, argument = line[1:].partition(" ")
        if not space:
            for command in COMMANDS:
                if command.name.startswith(name.lower()):
                    yield Completion(command.name, start_position=-len(name), display=f"/{command.name}",
                                     display_meta=f"{command.arguments}  {command.help}".strip())
            return
        command_ = find_quietly(name)
        if command_ is None:
            return
        path = path_part(command_, argument)
        if path is not None:
            paths = self._files if command_.paths else self._paths
            yield from paths.get_completions(Document(path, len(path)), complete_event)
            return
        if command_.paths:
            for offered, meaning in self._saved():
                if offered.startswith(argument):  # a name may have spaces
                    yield _offered(offered, argument, meaning)
            return
        word = argument.rpartition(" ")[2]
        for offered, meaning in self._offers(command_, argument[:len(argument) - len(word)].split()):
            if offered.startswith(word):
                yield _offered(offered, word, meaning)

    def _offers(self, command: Command, before: list[str]) -> Iterator[Offer]:
        """Words for the argument behind those that stand there."""
        session = self._session()
        if command.name == "set":
            yield from _settings(before)
        elif command.name == "help" and not before:
            yield from ((one.name, one.help) for one in COMMANDS)
        elif command.name == "cases" and before == ["drop"] and session is not None:
            yield from ((str(number), case.prompt) for number, case in enumerate(session.cases, 1))
        elif command.name == "goto" and not before and session is not None:
            yield from ((str(node.id), node.completion.text) for node in session.nodes)
        elif not before:
            yield from ((choice, CHOICES.get(choice, "")) for choice in command.choices)


def _offered(text: str, typed: str, meaning: str) -> Completion:
    return Completion(text, start_position=-len(typed), display=visible(text), display_meta=shorten(visible(meaning), MEANING))


def _settings(before: list[str]) -> Iterator[Offer]:
    if not before:
        yield from ((name, rule_of(name).meaning) for name in next(one for one in COMMANDS if one.name == "set").choices)
    elif len(before) == 1 and before[0] in FIELDS:
        rule = rule_of(before[0])
        words = ("true", "false") if rule.kind == "switch" else rule.choices
        yield from ((word, "the default" if str(FIELDS[before[0]].default).lower() == word else "") for word in words)


def path_part(command: Command, argument: str) -> str | None:
    """What of an argument is the beginning of a path; None where no path is expected."""
    if command.paths:  # what does not begin like a whole path is a name
        return argument if argument.startswith(("/", "~")) else None
    verb, space, path = argument.partition(" ")
    expected = command.name == "export" or (command.name == "adapter" and verb == "save")
    return path if expected and space else None
