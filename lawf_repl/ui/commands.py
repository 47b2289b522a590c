"""The commands of the prompt: one table, from which /help and completion are made and by which a typed line is understood."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from rich.table import Table
from rich.text import Text

from lawf_repl.errors import UsageError
from lawf_repl.ui.theme import Theme


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its arguments as the help shows them, what it does, and the words its first argument can be."""

    name: str
    arguments: str
    help: str
    choices: tuple[str, ...] = ()
    group: str = ""
    paths: bool = False  # the argument is a session's name or path


@dataclass(frozen=True, slots=True)
class Request:
    """A line that was understood: a command with its argument, or a prompt for the model (no command)."""

    command: Command | None
    argument: str


SETTINGS = ("confidence", "target_p", "max_tokens", "temperature", "top_p", "seed", "max_steps", "max_seconds", "preset", "rank", "layers",
            "scope", "variations", "rounds", "hold", "goal_p", "pull")
COMMANDS: tuple[Command, ...] = (
    Command("new", "", "the next prompt starts a new conversation", group="answer"),
    Command("edit", "", "open the answer view again", group="answer"),
    Command("tokens", "", "the answer's tokens with p and rank", group="answer"),
    Command("alternatives", "POSITION", "what could have stood at a position", group="answer"),
    Command("fix", "POSITION TEXT", "put TEXT there, the model goes on", group="answer"),
    Command("pick", "POSITION NUMBER", "take an alternative by its number", group="answer"),
    Command("delete", "POSITION [COUNT]", "delete tokens, the model goes on", group="answer"),
    Command("end", "POSITION", "end the answer before a position", group="answer"),
    Command("append", "[TEXT]", "go on where the answer ended", group="answer"),
    Command("undo", "", "take the last correction back", group="answer"),
    Command("redo", "", "make it again", group="answer"),
    Command("tree", "", "all answers, corrections, trainings", group="answer"),
    Command("goto", "NUMBER", "go to one of the tree", group="answer"),
    Command("anchors", "", "what training will change", group="train"),
    Command("accept", "", "the answer is right: train on it", group="train"),
    Command("cases", "[drop NUMBER]", "accepted answers; take one out", ("drop",), "train"),
    Command("train", "", "train the adapter, then compare", group="train"),
    Command("compare", "[PROMPT]", "before and after; any PROMPT off and on", group="train"),
    Command("mend", "", "train on what /compare found wrong too", group="train"),
    Command("paraphrase", "PROMPT", "a prompt that must be answered like it", group="train"),
    Command("neighbour", "PROMPT", "a prompt whose answer must stay", group="train"),
    Command("probe", "PROMPT", "measure drift on this prompt too", group="train"),
    Command("hold", "PROMPT", "keep the base's answer to it", group="train"),
    Command("confidence", "C", "strength of corrections, 0 to 1 (hard)", group="train"),
    Command("adapter", "on|off|reset|save DIR", "switch, drop, or save it as peft",
            ("on", "off", "reset", "save"), "keep"),
    Command("export", "FORMAT OUT", "for peft, vllm, merged, gguf or ollama", ("peft", "merged", "gguf", "ollama", "vllm"), "keep"),
    Command("save", "[NAME]", "name the session; alone: where it is", group="keep"),
    Command("load", "NAME", "open a saved session", group="keep", paths=True),
    Command("replay", "[--retrain]", "answer all again, check with the file", ("--retrain",), "keep"),
    Command("system", "[TEXT]", "the system prompt; alone: none", group="set"),
    Command("set", "[NAME VALUE]", "change a setting; alone: show them",
            SETTINGS, "set"),
    Command("model", "", "what is loaded, and where", group="set"),
    Command("doctor", "", "versions, devices, memory, what fits", group="set"),
    Command("help", "[COMMAND]", "this list, or one line of it", group="set"),
    Command("quit", "", "leave (Ctrl-D does too)", group="set"),
)
GROUPS = {"answer": "the answer", "train": "training", "keep": "keeping", "set": "the rest"}


def find(name: str) -> Command:
    """The command of this name or unique prefix; UsageError says what is ambiguous or what may have been meant."""
    lowered = name.lower()
    exact = [command for command in COMMANDS if command.name == lowered]
    matches = exact or [command for command in COMMANDS if lowered and command.name.startswith(lowered)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError("ambiguous: " + ", ".join(f"/{command.name}" for command in matches))
    names = [command.name for command in COMMANDS]
    close = get_close_matches(lowered, names, n=1, cutoff=0.6) or [name for name in names if lowered.startswith(name)]  # /settings
    raise UsageError(f"no command /{name}" + (f"; did you mean /{close[0]}?" if close else "; /help lists them"))


def find_quietly(name: str) -> Command | None:
    """The command of this name or unique prefix, if there is one."""
    try:
        return find(name)
    except UsageError:
        return None


def parse(line: str) -> Request:
    """A typed line: /name argument is a command, // at the start a prompt that begins with one slash, all else a prompt."""
    stripped = line.strip()
    if not stripped.startswith("/"):
        return Request(None, line.strip("\n"))
    if stripped.startswith("//"):
        return Request(None, stripped[1:])
    parts = stripped[1:].split(maxsplit=1)
    name = parts[0] if parts and not stripped[1:2].isspace() else ""
    if not name:
        raise UsageError("expected a command behind the slash: /help lists them; // begins a prompt")
    return Request(find(name), parts[1] if len(parts) > 1 else "")


def position_and_rest(command: Command, argument: str) -> tuple[int, str]:
    """The position that starts an argument, and what follows one space behind it, further spaces included."""
    number, _, rest = argument.partition(" ")
    if not number.isdecimal() or (not rest and " " in command.arguments and "[" not in command.arguments):
        raise UsageError(f"expected /{command.name} {command.arguments}, found {argument!a}; /tokens shows the positions")
    return int(number), rest


def help_table(theme: Theme) -> Table:
    """All commands, grouped, one line each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, title in GROUPS.items():
        table.add_row(Text(title, theme.rich("quiet")), "")
        for command in COMMANDS:
            if command.group == group:
                table.add_row(_usage(command, theme), Text(command.help))
    return table


def help_line(command: Command, theme: Theme) -> Text:
    """One command's line of the help."""
    return _usage(command, theme).append(f"  {command.help}")


def _usage(command: Command, theme: Theme) -> Text:
    text = Text("  ").append(f"/{command.name}", theme.rich("accent"))
    return text.append(f" {command.arguments}" if command.arguments else "")
