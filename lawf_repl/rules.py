"""Every setting as one line: what it accepts, its default, what it means; and the flags made from that.

`lawf --help` needs this and nothing else, so it stands apart from the dataclass of config.py, which costs as much to make as
the rest of the start.
"""

from __future__ import annotations

import argparse

TYPE_CHECKING = False  # typing's own costs a tenth of the start
if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["text", "path", "choice", "whole", "number", "switch", "pairs"]

TemplateValue = bool | int | float | str
TemplateArgs = tuple[tuple[str, TemplateValue], ...]
Value = str | int | float | bool | TemplateArgs | None

INFINITY = float("inf")
MOST = 2**63 - 1  # a larger whole number fits no random seed
FLAG_OF = {"template_args": "--template-arg"}  # where the flag is not the field's name


class Rule:
    """What a field accepts; `above` and `below` are open bounds, `low` and `high` closed ones."""

    def __init__(self, kind: Kind, default: Value, meaning: str, choices: tuple[str, ...] = (), *,  # noqa: PLR0913  # a table has columns
                 low: float = -INFINITY, high: float = INFINITY, above: float = -INFINITY, below: float = INFINITY,
                 optional: bool = False, flag: bool = True) -> None:
        self.kind, self.default, self.meaning, self.choices = kind, default, meaning, choices
        self.low, self.high, self.above, self.below = low, high, above, below
        self.optional = optional  # None is a value: "" or "none" as text
        self.flag = flag          # has a command-line flag


# The meaning of a field is its line here, in --help and nowhere else; its type is in config.py.
RULES: dict[str, Rule] = {
    "model": Rule("path", None, "hub id or directory of the model; by default the embedded demo model", optional=True),
    "revision": Rule("text", None, "branch, tag or commit of a hub model", optional=True),
    "adapter": Rule("path", None, "directory of a LoRA adapter to start from", optional=True),
    "device": Rule("choice", "auto", "where the model runs", choices=("auto", "cpu", "cuda", "mps")),
    "dtype": Rule(
        "choice", "auto", "number type of the weights; auto is bfloat16 on an accelerator, float32 on CPU",
        choices=("auto", "float32", "bfloat16", "float16")),
    "device_map": Rule("text", None, "how to spread the model over several devices, for example auto", optional=True),
    "quantize": Rule("choice", None, "load the weights quantized", choices=("4bit", "8bit"), optional=True),
    "trust_remote_code": Rule("switch", False, "run Python code that comes with the model"),
    "offline": Rule("switch", False, "never use the network; hub models come from the local cache only"),
    "system": Rule("text", None, "system message put before every prompt", optional=True),
    "template_args": Rule("pairs", (), "argument for the chat template, for example enable_thinking=false; may be repeated"),
    "max_tokens": Rule("whole", 512, "longest answer, in tokens", low=1, high=MOST),
    "temperature": Rule("number", 0.0, "sampling temperature; 0 is greedy", low=0),
    "top_p": Rule("number", 1.0, "sample only from the most probable tokens that hold this share", above=0, high=1),
    "seed": Rule("whole", 0, "seed of sampling and of training", low=0, high=MOST),
    "confidence": Rule("number", 1.0, "weight c of a correction: 1 is hard, less is a weak preference", above=0, high=1),
    "target_p": Rule("number", 0.95, "probability that every corrected token must reach", above=0, below=1),
    "rank": Rule(
        "whole", None, "rank of the LoRA adapter; by default 4, doubled until there is one for each accepted answer",
        low=1, high=65536, optional=True),
    "layers": Rule("choice", "upper", "decoder layers that carry the LoRA: the upper half of them, or all", choices=("upper", "all"), flag=False),
    "scope": Rule(
        "choice", "text", "where the adapter acts: on the whole text, or on the completion alone (an aLoRA; the prompt's states stay the base's)",
        choices=("text", "completion"), flag=False),
    "preset": Rule(
        "choice", "standard", "how thorough training is: sets variations, rounds and hold where they are not set themselves",
        choices=("quick", "standard", "careful"), flag=False),
    "goal_p": Rule(
        "number", 0.99999997, "probability that training pulls corrected tokens to; what is above --target-p carries over to paraphrases",
        above=0, below=1, flag=False),
    "variations": Rule(
        "whole", 64, "prompts almost like the corrected one that the model makes up, to be held like replay prompts", low=0, high=MOST, flag=False),
    "hold": Rule("number", 0.01, "nats by which a replay answer may move before it is held", above=0, flag=False),
    "rounds": Rule("whole", 5, "times that training looks which replay answers moved", low=1, high=MOST, flag=False),
    "pull": Rule("number", 6e3, "weight that pulls the adapter to zero, on its squared relative change", low=0, flag=False),
    "replay_prompts": Rule(
        "path", None, "file of prompts whose answers are to stay as they are, one a line or JSON Lines; by default a general set", optional=True),
    "probes": Rule("path", None, "file of prompts that drift is measured on, one a line or JSON Lines; by default a general set", optional=True),
    "max_steps": Rule("whole", 400, "training stops after this many steps", low=1, high=MOST),
    "max_seconds": Rule("number", 120.0, "training stops after this many seconds", above=0),
    "json": Rule("switch", False, "print one JSON object on standard output"),
    "vi": Rule("switch", False, "edit the prompt with vi keys; F4 changes it"),
    "theme": Rule("choice", "auto", "colours for a dark or a light background; auto asks the terminal", choices=("auto", "dark", "light")),
    "history": Rule("switch", True, "keep what was typed in a private file, for the next time", flag=False),
    "mouse": Rule("switch", True, "a click in the answer view goes to a token", flag=False),
    "keys": Rule("pairs", (), "keys of the answer view, for example fix = \"f f2\" under [keys] in the config file", flag=False),
    "plain": Rule("switch", False, "no colour, no cursor movement"),
}


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config and a flag for every field that has one; flags not given leave no trace in the namespace."""
    group = parser.add_argument_group("shared settings")
    group.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
                       help="config file (TOML) to read instead of the user's own")
    for name, rule in RULES.items():
        if not rule.flag:
            continue
        shown = "" if rule.default is None or rule.kind in ("switch", "pairs") else f" (default: {rule.default})"
        help_line = (rule.meaning + shown).replace("%", "%%")
        if rule.kind == "switch":
            group.add_argument(flag_of(name), dest=name, action=argparse.BooleanOptionalAction,
                               default=argparse.SUPPRESS, help=help_line)
        elif rule.kind == "pairs":
            group.add_argument(flag_of(name), dest=name, action="append", metavar="KEY=VALUE",
                               default=argparse.SUPPRESS, help=help_line)
        elif rule.kind == "choice":
            group.add_argument(flag_of(name), dest=name, choices=rule.choices, default=argparse.SUPPRESS, help=help_line)
        else:
            group.add_argument(flag_of(name), dest=name, metavar=_metavar(name, rule), default=argparse.SUPPRESS, help=help_line)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return FLAG_OF.get(name, "--" + name.replace("_", "-"))


def _metavar(name: str, rule: Rule) -> str:
    if name == "model":
        return "ID_OR_DIR"
    if name in ("replay_prompts", "probes"):
        return "FILE"
    return {"path": "DIR", "whole": "N", "number": "X"}.get(rule.kind, "TEXT")
