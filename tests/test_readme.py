"""The README tells the truth: its table of REPL commands is the program's own."""

from __future__ import annotations

from pathlib import Path

from lawf_repl.ui.commands import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def command_table() -> str:
    """The table as the README has to show it."""
    rows = [f"| `{usage}` | {command.help} |" for command in COMMANDS
            for usage in [f"/{command.name} {command.arguments}".strip().replace("|", "\\|")]]
    return "\n".join(["| in the REPL | does |", "|---|---|", *rows])


def test_every_command_stands_in_the_readme_as_help_says_it() -> None:
    assert command_table() in README


def test_no_placeholder_was_left() -> None:
    for word in ("RECORDING", "MEASUREMENTS", "PLANTED mistakes", "SKILLS skills", "PARAMETERS parameters"):
        assert word not in README
