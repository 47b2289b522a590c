"""The table of commands: every line is understood in one way or refused with a useful message."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from lawf_repl.config import Settings, with_setting
from lawf_repl.errors import UsageError
from lawf_repl.ui.commands import COMMANDS, GROUPS, SETTINGS, find, help_line, help_table, parse, position_and_rest
from lawf_repl.ui.completion import CommandCompleter
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.verbs import CORRECTIONS, REPORTS
from tests.fake_session import FakeSession


def completions(line: str) -> list[str]:
    return [item.text for item in CommandCompleter().get_completions(Document(line), CompleteEvent())]


def test_every_command_does_something_and_is_in_the_help() -> None:
    handled = set(CORRECTIONS) | set(REPORTS) | {"edit", "accept", "train", "compare", "mend", "export", "load", "replay", "doctor", "help", "quit"}
    assert {command.name for command in COMMANDS} == handled
    console = Console(file=io.StringIO(), width=80)
    console.print(help_table(Theme(plain=True)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"/{command.name}" in shown and command.help in shown for command in COMMANDS), "one line each at 80 columns"
    assert len(shown.splitlines()) == len(COMMANDS) + len(GROUPS)
    assert "/train" in help_line(find("train"), Theme()).plain


def test_unique_prefixes_are_enough() -> None:
    for command in COMMANDS:
        assert find(command.name) is command
        for end in range(1, len(command.name)):
            same = [other for other in COMMANDS if other.name.startswith(command.name[:end])]
            if len(same) == 1:
                assert find(command.name[:end]) is command


@pytest.mark.parametrize(("name", "message"), [("t", "ambiguous: /tokens, /tree, /train"), ("comprae",
                                                                                     "no command /comprae; did you mean /compare?"),
                                               ("settings", "no command /settings; did you mean /set?"),
                                               ("trainagain", "no command /trainagain; did you mean /train?"),
                                               ("zzz", "no command /zzz; /help lists them")])
def test_what_is_not_understood_is_said(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", "\\?")):
        parse(f"/{name} argument")


def test_settings_are_shown_so_that_they_read_back_the_same() -> None:
    session = FakeSession()
    session.settings = replace(Settings(), temperature=0.1, max_seconds=1e6, top_p=1 / 3)  # type: ignore[assignment]
    console = Console(file=io.StringIO(), width=200)
    console.print(REPORTS["set"](session, "", Theme(plain=True)))
    shown = {row.split()[0]: row.split()[1] for row in console.file.getvalue().splitlines()}  # type: ignore[attr-defined]
    assert (shown["goal_p"], shown["temperature"], shown["confidence"]) == ("0.99999997", "0.1", "1")
    for name in SETTINGS:
        now = getattr(session.settings, name)
        assert now is None or getattr(with_setting(Settings(), name, shown[name]), name) == now, name


def test_lines() -> None:
    assert parse("hello /train").command is None and parse("hello /train").argument == "hello /train"
    assert parse("//usr is a path").argument == "/usr is a path" and parse("//usr").command is None
    train = parse("  /train  ")
    assert train.command is find("train") and train.argument == ""
    assert parse("/fix 5  Canberra").argument == "5  Canberra"
    assert parse("/NEIGHBOUR What?").command is find("neighbour")
    for line in ("/", "/ train"):
        with pytest.raises(UsageError):
            parse(line)


@given(st.text())
def test_any_line_is_a_request_or_a_usage_error(line: str) -> None:
    try:
        request = parse(line)
    except UsageError as error:
        assert str(error) and line.strip().startswith("/")
    else:
        assert request.command is None or request.command in COMMANDS


def test_positions() -> None:
    fix, delete = find("fix"), find("delete")
    assert position_and_rest(fix, "5 Canberra") == (5, "Canberra") and position_and_rest(fix, "5  Canberra") == (5, " Canberra")
    assert position_and_rest(delete, "5") == (5, "") and position_and_rest(find("end"), "5") == (5, "")
    for command, argument in ((fix, "5"), (fix, "x y"), (delete, ""), (fix, "-1 a")):
        with pytest.raises(UsageError, match="expected /"):
            position_and_rest(command, argument)


def test_completion() -> None:
    assert completions("/tra") == ["train"] and set(completions("/")) == {command.name for command in COMMANDS}
    assert completions("/adapter o") == ["on", "off"] and completions("/adapter on ") == []
    assert completions("hello") == [] and completions("//") == []
