"""`lawf completion`: the script with which a shell completes commands, flags, files, planted mistakes and sessions; by shtab."""

from __future__ import annotations

import argparse
import os
from typing import Any

import shtab

from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.errors import UsageError
from lawf_repl.parser import make_parser
from lawf_repl.places import sessions_in, sessions_place

# The script asks lawf for the names each time: sessions come and go.
BASH_SESSIONS = """
_lawf_sessions() {
  compgen -W "$(lawf completion --names 2>/dev/null)" -- "$1"
  compgen -f -X '!*.jsonl' -- "$1"
  compgen -d -- "$1"
}
"""
_GLOB: dict[str, Any] = dict(shtab.glob("*.jsonl"))
SESSIONS: dict[str, Any] = _GLOB | {"bash": "_lawf_sessions", "preamble": _GLOB["preamble"] | {"bash": BASH_SESSIONS}}
COMPLETE: dict[str, Any] = {  # by what --help calls the argument
    "FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "ID_OR_DIR": shtab.DIRECTORY, "OUT": shtab.FILE, "SESSION_OR_ADAPTER": shtab.FILE,
    "SESSION": SESSIONS,
}


def run_completion(options: argparse.Namespace, settings: Settings) -> int:
    """Print the script, or the names that it asks for. Raises UsageError where neither is asked for."""
    if options.names:
        for path in sessions_in(sessions_place(getattr(options, "sessions", None), os.environ).path):
            if path.stem.isprintable():
                print(path.stem)
        return 0
    if options.shell is None:
        raise UsageError(f"expected a shell, one of {', '.join(shtab.SUPPORTED_SHELLS)} (see lawf completion --help)")
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The completion script for a shell that shtab knows."""
    parser = make_parser()
    for one in (parser, *_commands(parser).values()):
        for action in one._actions:
            if isinstance(action.metavar, str) and action.metavar in COMPLETE:
                action.complete = COMPLETE[action.metavar]  # type: ignore[attr-defined]  # where shtab looks for it
    name = next(action for action in _commands(parser)["demo"]._actions if action.dest == "name")
    name.choices = [edit["name"] for edit in load_edits()]
    return str(shtab.complete(parser, shell))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    choices: Any = next(action for action in parser._actions if action.dest == "command").choices
    return dict(choices)
