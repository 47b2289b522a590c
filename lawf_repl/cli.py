"""The command line: flags and dispatch. Nothing heavy is imported here; each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lawf_repl import __version__
from lawf_repl.config import Settings, add_shared_flags, load_settings
from lawf_repl.errors import LawfError, UsageError

INTERRUPTED = 130
PROMPT_HELP = "text, - for standard input, or @FILE"
COLUMNS = ("name", "model", "prompt", "anchors", "fixed", "drift", "date")  # of lawf sessions
FILTER_HELP = """what --filter matches, in any case of letters:
  TEXT            in the name, the model or the prompt
  name=TEXT       in that column; model=TEXT and prompt=TEXT too
  fixed=yes       yes, no, or unknown where nothing was compared
  anchors=2       anchors and drift also with < and >: drift>1e-5
  date=2026-11    days that begin so, in UTC; with < and > before and from then on"""


class Parser(argparse.ArgumentParser):
    """argparse that raises its complaints as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message} (see {self.prog} --help)")


def make_parser() -> Parser:
    """The whole command line, also for shell completion."""
    parser = Parser(prog="lawf", description="Fix one misbehaving prompt of a local language model, token by token, and change nothing else.",
                    epilog="Without a command: the REPL, on the embedded demo model if no model is named.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lawf {__version__}")
    parser.add_argument("--resume", action="store_true", help="go on with the session that was written to last")
    add_shared_flags(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    demo = commands.add_parser("demo", help="correct a planted mistake of the demo model; without a terminal it plays by itself", allow_abbrev=False)
    demo.add_argument("name", nargs="?", metavar="NAME", help="which mistake, as --list names them")
    demo.add_argument("--list", action="store_true", help="list the planted mistakes")

    answer = commands.add_parser("answer", help="one answer", allow_abbrev=False)
    _add_prompt(answer)

    fix = commands.add_parser("fix", help="correct, train, and measure without a hand", allow_abbrev=False)
    _add_prompt(fix)
    how = fix.add_mutually_exclusive_group(required=True)
    how.add_argument("--fix", action="append", metavar="'OLD=>NEW'", 
                     help="replace OLD in the answer by NEW and let the model go on; several in order")
    how.add_argument("--want", metavar="TEXT", help="the whole right answer")
    fix.add_argument("--paraphrase", action="append", default=[], metavar="P", help="a prompt that must give the accepted answer too")
    fix.add_argument("--neighbour", action="append", default=[], metavar="P", help="a prompt whose answer must not change")
    fix.add_argument("--session", type=Path, metavar="FILE", help="write the session there, the adapter beside it")
    fix.add_argument("--adapter-out", type=Path, metavar="DIR", help="write the adapter there")

    train = commands.add_parser("train", help="one adapter from the accepted answers of saved sessions", allow_abbrev=False)
    train.add_argument("sessions", nargs="+", type=Path, metavar="SESSION", help="session files on the same base")
    train.add_argument("--out", type=Path, default=Path("trained.adapter"), metavar="DIR", help="write the adapter there (default: trained.adapter)")
    train.add_argument("--force", action="store_true", help="replace what stands there")

    check = commands.add_parser("check", help="the scorecard of an adapter: its base, its effect, its side effects", allow_abbrev=False)
    check.add_argument("source", type=Path, metavar="SESSION_OR_ADAPTER", help="a session file, or an adapter folder")
    check.add_argument("--prompts", type=Path, metavar="FILE", help="measure what changes on these prompts, one a line or JSON Lines")

    export = commands.add_parser("export", help="write an adapter for other software, loaded there before it is called good", allow_abbrev=False)
    export.add_argument("source", type=Path, metavar="SESSION_OR_ADAPTER", help="a session file, or an adapter folder")
    export.add_argument("out", type=Path, metavar="OUT", help="the folder to write (for gguf also a file NAME.gguf)")
    export.add_argument("--format", required=True, choices=("peft", "merged", "gguf", "ollama", "vllm"), help="for which software")
    export.add_argument("--force", action="store_true", help="replace what stands at OUT")
    export.add_argument("--base-id", metavar="OWNER/NAME", help="the hub id of a base that was loaded from a folder")
    export.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it to this repository when it is verified")
    export.add_argument("--public", action="store_true", help="make a repository that --push-to-hub creates public")
    export.add_argument("--dry-run", action="store_true", help="list what --push-to-hub would upload, and upload nothing")
    replay = commands.add_parser("replay", help="saved sessions again, checked token by token against their files", allow_abbrev=False)
    replay.add_argument("session", nargs="+", metavar="SESSION", help="a session file, a folder of them, or a name")
    replay.add_argument("--retrain", action="store_true", help="train again, instead of loading the saved adapter")
    replay.add_argument("--junit", type=Path, metavar="FILE", help="write the result there as JUnit XML")

    show = commands.add_parser("show", help="a saved session as a story to read; needs no model", allow_abbrev=False)
    show.add_argument("session", metavar="SESSION", help="a session file, or a name")

    sessions = commands.add_parser("sessions", help="a table of saved sessions; needs no model", allow_abbrev=False, epilog=FILTER_HELP,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    sessions.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the folder to list (default: as for --sessions)")
    sessions.add_argument("--sort", choices=COLUMNS, default="date", help="the column to sort by, least first, dates latest first (default: date)")
    sessions.add_argument("--reverse", action="store_true", help="the other way round; what has no figure stays last")
    sessions.add_argument("--filter", action="append", default=[], metavar="TEXT", help="only those that match it, and every further one; see below")
    sessions.add_argument("--verify", action="store_true", help="check all that the files say, and the adapters' hashes; exit 1 if one does not hold")

    report = commands.add_parser("report", help="saved sessions as one HTML page that needs nothing else; needs no model", allow_abbrev=False)
    report.add_argument("session", nargs="+", metavar="SESSION", help="a session file, a folder of them, or a name")
    report.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the page to write, for example report.html")
    report.add_argument("--force", action="store_true", help="replace what stands there")

    locate = commands.add_parser("locate", help="where config, sessions and logs are", allow_abbrev=False)

    bench = commands.add_parser("bench", help="compare with peers: what each way of training costs the rest of the model", allow_abbrev=False)
    bench.add_argument("what", choices=("objective", "speed", "start"), metavar="objective|speed|start", help="the comparison to run")
    bench.add_argument("--edits", type=int, metavar="N", help="planted mistakes to correct, all kinds in turn (default: all of them)")
    bench.add_argument("--seeds", type=int, default=1, metavar="K", help="seeds to train each with (default: 1)")
    bench.add_argument("--levers", action="store_true", help="instead of the peers: our own recipe with one thing changed at a time")
    bench.add_argument("--stream", type=int, metavar="N", help="instead of the peers: N corrections one after the other in one session")
    bench.add_argument("--plot", action="store_true", help="instead of the tables: drift against acquisition over the course of every training")
    bench.add_argument("--svg", type=Path, metavar="FILE", help="write the plot there, too")
    bench.add_argument("--rows", type=Path, metavar="FILE", help="append each reading to FILE, and go on from those that it holds")
    bench.add_argument("--random", metavar="SHAPE", help="speed: on a model with random weights: 135m, 0.6b or 8b")
    bench.add_argument("--only", metavar="PART", help="speed: one part of it, for example decode")
    bench.add_argument("--results", type=Path, metavar="FILE", help="speed: append the figures to a Markdown file, with date and machine")
    for command in (demo, answer, fix, train, check, export, replay, show, sessions, report, locate, bench):
        add_shared_flags(command)
    for command in (parser, demo, replay, show, sessions, report, locate):
        command.add_argument("--sessions", type=Path, metavar="DIR", default=argparse.SUPPRESS,
                             help="folder of saved sessions (default: LAWF_SESSIONS, ./sessions if it exists, else the platform's; see lawf locate)")
    return parser


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=PROMPT_HELP)
    parser.add_argument("--messages", type=Path, metavar="FILE", help="a whole conversation: a JSON list of role and content")


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


def _run(arguments: list[str]) -> int:
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError("an argument is not valid UTF-8: check the terminal's encoding, or pass the text as @FILE")
    options = make_parser().parse_args(arguments)
    settings = settings_of(options)
    if options.resume and options.command:
        raise UsageError(f"--resume goes on with a session in the REPL: leave out {options.command}")
    if options.command == "answer":
        from lawf_repl.verbs.answer import run_answer

        return run_answer(options, settings)
    if options.command == "fix":
        from lawf_repl.verbs.fix import run_fix

        return run_fix(options, settings)
    if options.command == "demo":
        from lawf_repl.verbs.demo import run_demo

        return run_demo(options, settings)
    if options.command == "train":
        from lawf_repl.verbs.train import run_train

        return run_train(options, settings)
    if options.command == "check":
        from lawf_repl.verbs.check import run_check

        return run_check(options, settings)
    if options.command == "export":
        from lawf_repl.verbs.export import run_export

        return run_export(options, settings)
    if options.command == "replay":
        from lawf_repl.verbs.replay import run_replay

        return run_replay(options, settings)
    if options.command == "show":
        from lawf_repl.verbs.show import run_show

        return run_show(options, settings)
    if options.command == "sessions":
        from lawf_repl.verbs.sessions import run_sessions

        return run_sessions(options, settings)
    if options.command == "report":
        from lawf_repl.verbs.report import run_report

        return run_report(options, settings)
    if options.command == "locate":
        from lawf_repl.verbs.locate import run_locate

        return run_locate(options, settings)
    if options.command == "bench":
        from lawf_repl.verbs.bench import run_bench

        return run_bench(options, settings)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("the REPL needs a terminal on standard input: use lawf answer, lawf fix or lawf demo here")
    from lawf_repl.verbs.repl import start_repl

    return start_repl(settings, sessions=getattr(options, "sessions", None), resume=options.resume, given=frozenset(vars(options)))


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings from all their sources. Raises UsageError."""
    flags = dict(vars(options))
    config = flags.pop("config", None)
    names = set(Settings.__dataclass_fields__)
    return load_settings({name: value for name, value in flags.items() if name in names}, os.environ, Path(config) if config else None)


def _one_line(text: str) -> str:
    """An error as one line that a terminal can show: no control characters from file names or models."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)
