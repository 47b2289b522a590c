"""The command line: flags and dispatch. Nothing heavy is imported here; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys

from lawf_repl import __version__
from lawf_repl.errors import LawfError, UsageError

TYPE_CHECKING = False  # typing's own would be a third of what --version takes
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from lawf_repl.config import Settings

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run lawf; returns the exit code. Errors of the user's come out as one line on standard error."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except LawfError as error:
        print(f"lawf: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lawf: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of standard output has gone: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what no command saw coming: a disk that fails, a folder that is closed to the user
        where = f" {error.filename}" if error.filename else ""
        print(f"lawf: {_one_line(f'the system refuses{where}: {error.strerror or error}; check the path and its permissions')}", file=sys.stderr)
        return LawfError.exit_code


def _run(arguments: list[str]) -> int:
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError("an argument is not valid UTF-8: check the terminal's encoding, or pass the text as @FILE")
    if arguments == ["--version"]:  # argparse would take longer to load than the rest
        print(f"lawf {__version__}")
        return 0
    from lawf_repl.parser import make_parser

    parser = make_parser(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown and options.command == "export" and not any(argument.startswith("-") for argument in unknown):
        raise UsageError("lawf export takes one session or adapter and OUT: of several sessions, lawf train SESSION... --out DIR makes one adapter "
                         "that learns all their cases, and that can be exported")
    if unknown:
        parser.refuse(unknown, options.command)
    settings = settings_of(options)
    if options.resume and options.command:
        raise UsageError(f"--resume goes on with a session in the REPL: leave out {options.command}")
    if options.command:  # the parser knows its names; each is a file of verbs/ with a function of its own
        from importlib import import_module

        run: Callable[[argparse.Namespace, Settings], int] = getattr(import_module(f"lawf_repl.verbs.{options.command}"), f"run_{options.command}")
        return run(options, settings)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("the REPL needs a terminal on standard input: use lawf answer, lawf fix or lawf demo here")
    from lawf_repl.collector import paused

    with paused():
        from lawf_repl.verbs.repl import start_repl

    return start_repl(settings, sessions=getattr(options, "sessions", None), resume=options.resume, given=frozenset(vars(options)))


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings from all their sources. Raises UsageError."""
    from pathlib import Path

    from lawf_repl.config import Settings, load_settings

    flags = dict(vars(options))
    config = flags.pop("config", None)
    names = set(Settings.__dataclass_fields__)
    return load_settings({name: value for name, value in flags.items() if name in names}, os.environ, Path(config) if config else None)


def _one_line(text: str) -> str:
    """An error as one line that a terminal can show: no control characters from file names or models."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)
