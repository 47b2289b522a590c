"""The README tells the truth: its table of REPL commands is the program's own."""

from __future__ import annotations

from pathlib import Path

from lawf_repl.parser import make_parser
from lawf_repl.ui.commands import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def command_table() -> str:
    """The table as the README has to show it."""
    rows = [f"| `{usage}` | {command.help} |" for command in COMMANDS
            for usage in [f"/{command.name} {command.arguments}".strip().replace("|", "\\|")]]
    return "\n".join(["| in the REPL | does |", "|---|---|", *rows])


def test_every_command_stands_in_the_readme_as_help_says_it() -> None:
    assert command_table() in README


def test_every_command_of_the_command_line_stands_in_the_reference() -> None:
    shell = make_parser(["--help"])
    commands = next(action.choices for action in shell._actions if action.dest == "command")
    assert commands is not None and len(list(commands)) > 10
    assert [name for name in commands if f"| `lawf {name}" not in README] == []


def test_no_placeholder_was_left() -> None:
    for word in ("RECORDING", "MEASUREMENTS", "PLANTED mistakes", "SKILLS skills", "PARAMETERS parameters"):
        assert word not in README
