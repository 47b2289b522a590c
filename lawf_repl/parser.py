"""The flags of the command line. `lawf --help` needs this file and rules.py, and nothing that takes longer to import than argparse."""

from __future__ import annotations

import argparse
import os
import re

from lawf_repl import __version__
from lawf_repl.errors import UsageError
from lawf_repl.rules import add_shared_flags

TYPE_CHECKING = False  # typing's own costs a tenth of the start
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from pathlib import Path
    from typing import Any

PROMPT_HELP = "text, - for standard input, or @FILE"
COLUMNS = ("name", "model", "prompt", "anchors", "fixed", "drift", "date")  # of lawf sessions
FILTER_HELP = """what --filter matches, in any case of letters:
  TEXT            in the name, the model or the prompt
  name=TEXT       in that column; model=TEXT and prompt=TEXT too
  fixed=yes       yes, no, or unknown where nothing was compared
  anchors=2       anchors and drift also with < and >: drift>1e-5
  date=2026-11    days that begin so, in UTC; with < and > before and from then on"""

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")  # those of shtab
INSTALL_HELP = """to have it in every new shell:
  bash        lawf completion bash > ~/.local/share/bash-completion/completions/lawf
              (without bash-completion: put   source <(lawf completion bash)   into ~/.bashrc)
  zsh         lawf completion zsh > ~/.zfunc/_lawf   and, before compinit in ~/.zshrc,   fpath+=~/.zfunc
  tcsh        lawf completion tcsh > ~/.lawf.tcsh   and in ~/.tcshrc   source ~/.lawf.tcsh
  fish        lawf completion fish > ~/.config/fish/completions/lawf.fish
  powershell  in $PROFILE   lawf completion powershell | Out-String | Invoke-Expression"""


class Help(argparse.HelpFormatter):
    """argparse's layout, without the modules that it would load to ask for the terminal's width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)


class Details(Help, argparse.RawDescriptionHelpFormatter):
    """The same with the lines of an epilog left as they are."""


def columns() -> int:
    """Cells of a line on standard output, as shutil.get_terminal_size has them: COLUMNS, the terminal's, or 80."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(1).columns or 80
    except (OSError, ValueError):
        return 80


class Parser(argparse.ArgumentParser):
    """argparse that raises its complaints as one line."""

    def __init__(self, **more: Any) -> None:
        more.setdefault("formatter_class", Help)
        super().__init__(allow_abbrev=False, **more)
        self.commands: dict[str, Parser] = {}

    def error(self, message: str) -> None:  # type: ignore[override]
        wrong, behind, choices = message.partition(" (choose from ")
        if behind and "invalid choice: '" in wrong:
            message = f"{wrong}{_near(wrong.split(chr(39))[1], re.findall(r'[a-z0-9_-]+', choices))}{behind}{choices}"
        raise UsageError(f"{message} (see {self.prog} --help)")

    def refuse(self, unknown: list[str], command: str | None) -> None:
        """Raise UsageError for arguments that the command, or lawf without one, does not have."""
        flags = self.commands.get(command or "", self)._option_string_actions  # no other list of them is kept
        wrong = next((one for one in unknown if one.startswith("--")), "").partition("=")[0]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{_near(wrong, [flag for flag in flags if flag.startswith('--')])}")


def _near(wrong: str, known: list[str]) -> str:
    """The known word that a wrong one is close to, as a question behind it; nothing where there is none."""
    import difflib  # late: only a mistake needs it

    close = difflib.get_close_matches(wrong.lstrip("-"), [one.lstrip("-") for one in known], n=1)
    return "".join(f"; did you mean {one}?" for one in known if [one.lstrip("-")] == close)


def make_parser(words: Container[str] | None = None) -> Parser:
    """The whole command line, also for shell completion; of the commands only those among `words` get their flags, where it is given."""
    parser = Parser(prog="lawf", description="Fix one misbehaving prompt of a local language model, token by token, and change nothing else.",
                    epilog="Without a command: the REPL, on the embedded demo model if no model is named.")
    parser.add_argument("--version", action="version", version=f"lawf {__version__}")
    parser.add_argument("--resume", action="store_true", help="go on with the session that was written to last")
    add_shared_flags(parser)
    _add_sessions(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser, prog="lawf")
    for name, (meaning, add_flags) in COMMANDS.items():
        parser.commands[name] = command = commands.add_parser(name, help=meaning, **MORE.get(name, {}))
        if words is None or name in words:
            add_flags(command)
            add_shared_flags(command)
            if name in WITH_SESSIONS:
                _add_sessions(command)
    return parser


def _demo(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="which mistake, as --list names them")
    parser.add_argument("--list", action="store_true", help="list the planted mistakes")


def _answer(parser: Parser) -> None:
    _add_prompt(parser)


def _fix(parser: Parser) -> None:
    _add_prompt(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--fix", action="append", metavar="'OLD=>NEW'",
                     help="replace OLD in the answer by NEW and let the model go on; several in order")
    how.add_argument("--want", metavar="TEXT", help="the whole right answer")
    parser.add_argument("--paraphrase", action="append", default=[], metavar="P", help="a prompt that must give the accepted answer too")
    parser.add_argument("--neighbour", action="append", default=[], metavar="P", help="a prompt whose answer must not change")
    parser.add_argument("--session", type=_path, metavar="FILE", help="write the session there, the adapter beside it")
    parser.add_argument("--adapter-out", type=_path, metavar="DIR", help="write the adapter there")


def _train(parser: Parser) -> None:
    parser.add_argument("sessions", nargs="+", type=_path, metavar="SESSION", help="session files on the same base, or their names")
    parser.add_argument("--out", type=_path, default="trained.adapter", metavar="DIR", help="write the adapter there (default: trained.adapter)")
    parser.add_argument("--force", action="store_true", help="replace what stands there")


def _check(parser: Parser) -> None:
    parser.add_argument("source", type=_path, metavar="SESSION_OR_ADAPTER", help="a session file, the name of one, or an adapter folder")
    parser.add_argument("--prompts", type=_path, metavar="FILE", help="measure what changes on these prompts, one a line or JSON Lines")


def _export(parser: Parser) -> None:
    parser.add_argument("source", type=_path, metavar="SESSION_OR_ADAPTER", help="a session file, the name of one, or an adapter folder")
    parser.add_argument("out", type=_path, metavar="OUT", help="the folder to write (for gguf also a file NAME.gguf)")
    parser.add_argument("--format", required=True, choices=("peft", "merged", "gguf", "ollama", "vllm"), help="for which software")
    parser.add_argument("--force", action="store_true", help="replace what stands at OUT")
    parser.add_argument("--base-id", metavar="OWNER/NAME", help="the hub id of a base that was loaded from a folder")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to this repository when it is verified")
    parser.add_argument("--public", action="store_true", help="make a repository that --push-to-hub creates public")
    parser.add_argument("--dry-run", action="store_true", help="list what --push-to-hub would upload, and upload nothing")


def _replay(parser: Parser) -> None:
    parser.add_argument("session", nargs="+", metavar="SESSION", help="a session file, a folder of them, or a name")
    parser.add_argument("--retrain", action="store_true", help="train again, instead of loading the saved adapter")
    parser.add_argument("--junit", type=_path, metavar="FILE", help="write the result there as JUnit XML")


def _show(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", help="a session file, or a name")


def _sessions(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", type=_path, metavar="DIR", help="the folder to list (default: as for --sessions)")
    parser.add_argument("--sort", choices=COLUMNS, default="date", help="the column to sort by, least first, dates latest first (default: date)")
    parser.add_argument("--reverse", action="store_true", help="the other way round; what has no figure stays last")
    parser.add_argument("--filter", action="append", default=[], metavar="TEXT", help="only those that match it, and every further one; see below")
    parser.add_argument("--verify", action="store_true", help="check all that the files say, and the adapters' hashes; exit 1 if one does not hold")


def _report(parser: Parser) -> None:
    parser.add_argument("session", nargs="+", metavar="SESSION", help="a session file, a folder of them, or a name")
    parser.add_argument("-o", "--out", type=_path, required=True, metavar="FILE", help="the page to write, for example report.html")
    parser.add_argument("--force", action="store_true", help="replace what stands there")


def _bench(parser: Parser) -> None:
    parser.add_argument("what", choices=("objective", "speed", "start"), metavar="objective|speed|start", help="the comparison to run")
    parser.add_argument("--edits", type=int, metavar="N", help="planted mistakes to correct, all kinds in turn (default: all of them)")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds to train each with (default: 1)")
    parser.add_argument("--levers", action="store_true", help="instead of the peers: our own recipe with one thing changed at a time")
    parser.add_argument("--stream", type=int, metavar="N", help="instead of the peers: N corrections one after the other in one session")
    parser.add_argument("--plot", action="store_true", help="instead of the tables: drift against acquisition over the course of every training")
    parser.add_argument("--svg", type=_path, metavar="FILE", help="write the plot there, too")
    parser.add_argument("--rows", type=_path, metavar="FILE", help="append each reading to FILE, and go on from those that it holds")
    parser.add_argument("--random", metavar="SHAPE", help="speed: on a model with random weights: 135m, 0.6b or 8b")
    parser.add_argument("--only", metavar="PART", help="speed: one part of it, for example decode")
    parser.add_argument("--results", type=_path, metavar="FILE", help="speed: append the figures to a Markdown file, with date and machine")


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.add_argument("--names", action="store_true", help="print the names of saved sessions, as the script asks for them")


def _none(parser: Parser) -> None:
    """A command without flags of its own."""


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=PROMPT_HELP)
    parser.add_argument("--messages", type=_path, metavar="FILE", help="a whole conversation: a JSON list of role and content")


def _add_sessions(parser: Parser) -> None:
    parser.add_argument("--sessions", type=_path, metavar="DIR", default=argparse.SUPPRESS,
                        help="folder of saved sessions (default: LAWF_SESSIONS, ./sessions if it exists, else the platform's; see lawf locate)")


def _path(text: str) -> Path:
    from pathlib import Path  # late: --help does not need it

    return Path(text)


# In the order of --help: what a command does, and what adds its own flags.
COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "demo": ("correct a planted mistake of the demo model; without a terminal it plays by itself", _demo),
    "answer": ("one answer", _answer),
    "fix": ("correct, train, and measure without a hand", _fix),
    "train": ("one adapter from the accepted answers of saved sessions", _train),
    "check": ("the scorecard of an adapter: its base, its effect, its side effects", _check),
    "export": ("write an adapter for other software, loaded there before it is called good", _export),
    "replay": ("saved sessions again, checked token by token against their files", _replay),
    "show": ("a saved session as a story to read; needs no model", _show),
    "sessions": ("a table of saved sessions; needs no model", _sessions),
    "report": ("saved sessions as one HTML page that needs nothing else; needs no model", _report),
    "doctor": ("versions, devices, memory and what fits, folders, the terminal; exit 1 where something is wrong", _none),
    "locate": ("where config, sessions and logs are", _none),
    "bench": ("compare with peers: what each way of training costs the rest of the model", _bench),
    "completion": ("a script that makes a shell complete what is typed behind lawf", _completion),
}
WITH_SESSIONS = frozenset({"demo", "check", "export", "replay", "show", "sessions", "report", "doctor", "locate", "completion"})
MORE: dict[str, dict[str, Any]] = {"sessions": {"epilog": FILTER_HELP, "formatter_class": Details},
                                   "completion": {"epilog": INSTALL_HELP, "formatter_class": Details}}
