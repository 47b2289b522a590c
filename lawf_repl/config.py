"""The settings: one table of fields, from which flags, environment, config file and the REPL's /set are all derived.

Precedence: defaults < config file < environment (LAWF_<FIELD>) < flags. A later source replaces a field as a whole.
Every mistake is a UsageError that names the place, what was expected, what was found and what to do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

from lawf_repl.errors import UsageError

Kind = Literal["text", "path", "choice", "whole", "number", "switch", "pairs"]
TemplateValue = bool | int | float | str
TemplateArgs = tuple[tuple[str, TemplateValue], ...]
Value = str | int | float | bool | TemplateArgs | None
T = TypeVar("T")

MOST = 2**63 - 1  # a larger whole number fits no random seed
LARGEST = sys.float_info.max
TRUE, FALSE = frozenset({"true", "on", "yes", "1"}), frozenset({"false", "off", "no", "0"})
FLAG_OF = {"template_args": "--template-arg"}  # where the flag is not the field's name


class Rule(NamedTuple):
    """What a field accepts; `above` and `below` are open bounds, `low` and `high` closed ones."""

    kind: Kind
    meaning: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    optional: bool = False  # None is a value: "" or "none" as text
    flag: bool = True       # has a command-line flag


def _setting(default: T, rule: Rule) -> T:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. The meaning of a field is its line here, in --help and nowhere else."""

    model: str | None = _setting(None, Rule("path", "hub id or directory of the model; by default the embedded demo model", optional=True))
    revision: str | None = _setting(None, Rule("text", "branch, tag or commit of a hub model", optional=True))
    adapter: str | None = _setting(None, Rule("path", "directory of a LoRA adapter to start from", optional=True))
    device: str = _setting("auto", Rule("choice", "where the model runs", choices=("auto", "cpu", "cuda", "mps")))
    dtype: str = _setting(
        "auto", Rule("choice", "number type of the weights; auto is bfloat16 on an accelerator, float32 on CPU",
                     choices=("auto", "float32", "bfloat16", "float16")))
    device_map: str | None = _setting(None, Rule("text", "how to spread the model over several devices, for example auto", optional=True))
    quantize: str | None = _setting(None, Rule("choice", "load the weights quantized", choices=("4bit", "8bit"), optional=True))
    trust_remote_code: bool = _setting(False, Rule("switch", "run Python code that comes with the model"))
    offline: bool = _setting(False, Rule("switch", "never use the network; hub models come from the local cache only"))
    system: str | None = _setting(None, Rule("text", "system message put before every prompt", optional=True))
    template_args: TemplateArgs = _setting(  # noqa: RUF009  # gives a Field
        (), Rule("pairs", "argument for the chat template, for example enable_thinking=false; may be repeated"))
    max_tokens: int = _setting(512, Rule("whole", "longest answer, in tokens", low=1, high=MOST))
    temperature: float = _setting(0.0, Rule("number", "sampling temperature; 0 is greedy", low=0))
    top_p: float = _setting(1.0, Rule("number", "sample only from the most probable tokens that hold this share", above=0, high=1))
    seed: int = _setting(0, Rule("whole", "seed of sampling and of training", low=0, high=MOST))
    confidence: float = _setting(1.0, Rule("number", "weight c of a correction: 1 is hard, less is a weak preference", above=0, high=1))
    target_p: float = _setting(0.95, Rule("number", "probability that every corrected token must reach", above=0, below=1))
    rank: int | None = _setting(None, Rule(
        "whole", "rank of the LoRA adapter; by default 4, doubled until there is one for each accepted answer", low=1, high=65536, optional=True))
    layers: str = _setting("upper", Rule(
        "choice", "decoder layers that carry the LoRA: the upper half of them, or all", choices=("upper", "all"), flag=False))
    preset: str = _setting("standard", Rule(
        "choice", "how thorough training is: sets variations, rounds and hold where they are not set themselves",
        choices=("quick", "standard", "careful"), flag=False))
    goal_p: float = _setting(0.99999, Rule(
        "number", "probability that training pulls corrected tokens to; what is above --target-p carries over to paraphrases", above=0, below=1,
        flag=False))
    variations: int = _setting(64, Rule(
        "whole", "prompts almost like the corrected one that the model makes up, to be held like replay prompts", low=0, high=MOST, flag=False))
    hold: float = _setting(0.01, Rule(
        "number", "nats by which a replay answer may move before it is held", above=0, flag=False))
    rounds: int = _setting(5, Rule("whole", "times that training looks which replay answers moved", low=1, high=MOST, flag=False))
    pull: float = _setting(6e3, Rule(
        "number", "weight that pulls the adapter to zero, on its squared relative change", low=0, flag=False))
    replay_prompts: str | None = _setting(None, Rule(
        "path", "file of prompts whose answers are to stay as they are, one a line or JSON Lines; by default a general set", optional=True))
    probes: str | None = _setting(None, Rule(
        "path", "file of prompts that drift is measured on, one a line or JSON Lines; by default a general set", optional=True))
    max_steps: int = _setting(400, Rule("whole", "training stops after this many steps", low=1, high=MOST))
    max_seconds: float = _setting(120.0, Rule("number", "training stops after this many seconds", above=0))
    json: bool = _setting(False, Rule("switch", "print one JSON object on standard output"))
    vi: bool = _setting(False, Rule("switch", "edit the prompt with vi keys; F4 changes it"))
    theme: str = _setting("auto", Rule("choice", "colours for a dark or a light background; auto asks the terminal",
                                       choices=("auto", "dark", "light")))
    history: bool = _setting(True, Rule("switch", "keep what was typed in a private file, for the next time", flag=False))
    mouse: bool = _setting(True, Rule("switch", "a click in the answer view goes to a token", flag=False))
    keys: TemplateArgs = _setting(  # noqa: RUF009  # gives a Field
        (), Rule("pairs", "keys of the answer view, for example fix = \"f f2\" under [keys] in the config file", flag=False))
    plain: bool = _setting(False, Rule("switch", "no colour, no cursor movement"))


# What a preset sets; fields that are not in it have their defaults.
PRESETS: dict[str, dict[str, Value]] = {
    "quick": {"variations": 0, "rounds": 2},                     # the replay prompts alone are held
    "standard": {},
    "careful": {"variations": 160, "rounds": 8, "hold": 0.003},  # more of what stands near, and held more tightly
}
FIELDS: dict[str, Field[object]] = {one.name: one for one in fields(Settings)}


def rule_of(name: str) -> Rule:
    """The rule of a field that exists."""
    return cast(Rule, FIELDS[name].metadata["rule"])


def default_config_path() -> Path:
    """Where the config file is looked for if none is named; it need not exist."""
    from platformdirs import user_config_dir  # late: --help and --version do not need it

    return Path(user_config_dir("lawf", appauthor=False)) / "config.toml"


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str], config_path: Path | None) -> Settings:
    """Settings from all sources.

    `flags` is what argparse found (vars of the namespace): names that are no settings and values of None are passed
    over. `config_path` None is the default place, where a missing file is fine; a named file must exist.
    Raises UsageError.
    """
    values: dict[str, Value] = {}
    path = default_config_path() if config_path is None else config_path
    for key, value in _read_config(path, required=config_path is not None).items():
        if key not in FIELDS:
            raise UsageError(f"config file {path}: unknown key {_shown(key)}{_did_you_mean(key)}")
        values[key] = _checked(f"config file {path}: {key}", rule_of(key), value)
    for name in FIELDS:
        variable = f"LAWF_{name.upper()}"
        if text := environ.get(variable):  # set but empty counts as not set, as shells have it
            values[name] = _from_text(f"environment variable {variable}", rule_of(name), text)
    for name in FIELDS:
        given = flags.get(name)
        if given is not None:
            where = f"flag {_flag(name)}"
            rule = rule_of(name)
            values[name] = _from_text(where, rule, given) if isinstance(given, str) else _checked(where, rule, given)
    preset = PRESETS[str(values.get("preset", Settings.preset))]
    return replace(Settings(), **{**preset, **values})  # type: ignore[arg-type]  # each was checked by its rule


def with_setting(settings: Settings, name: str, text: str) -> Settings:
    """`settings` with one field read from text, as /set and the environment write it. Raises UsageError."""
    key = name.strip().replace("-", "_")
    if key not in FIELDS:
        raise UsageError(f"unknown setting {_shown(name)}{_did_you_mean(key)}")
    changed: dict[str, Value] = {key: _from_text(key, rule_of(key), text)}
    if key == "preset":  # the numbers of the one before must not stay behind
        ours = {name for preset in PRESETS.values() for name in preset}
        changed |= {name: cast(Value, FIELDS[name].default) for name in ours} | PRESETS[str(changed[key])]
    return replace(settings, **changed)  # type: ignore[arg-type]  # checked by its rule


def check_value(name: str, value: object) -> Value:
    """A typed value for a field, from a file, if its rule accepts it. Raises UsageError."""
    return _checked(name, rule_of(name), value)


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config and a flag for every field that has one; flags not given leave no trace in the namespace."""
    group = parser.add_argument_group("shared settings")
    group.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
                       help="config file (TOML) to read instead of the user's own")
    for name, one in FIELDS.items():
        rule = rule_of(name)
        if not rule.flag:
            continue
        shown = "" if one.default is None or rule.kind in ("switch", "pairs") else f" (default: {one.default})"
        help_line = (rule.meaning + shown).replace("%", "%%")
        if rule.kind == "switch":
            group.add_argument(_flag(name), dest=name, action=argparse.BooleanOptionalAction,
                               default=argparse.SUPPRESS, help=help_line)
        elif rule.kind == "pairs":
            group.add_argument(_flag(name), dest=name, action="append", metavar="KEY=VALUE",
                               default=argparse.SUPPRESS, help=help_line)
        elif rule.kind == "choice":
            group.add_argument(_flag(name), dest=name, choices=rule.choices, default=argparse.SUPPRESS, help=help_line)
        else:
            group.add_argument(_flag(name), dest=name, metavar=_metavar(name, rule), default=argparse.SUPPRESS, help=help_line)


def _flag(name: str) -> str:
    return FLAG_OF.get(name, "--" + name.replace("_", "-"))


def _metavar(name: str, rule: Rule) -> str:
    if name == "model":
        return "ID_OR_DIR"
    if name in ("replay_prompts", "probes"):
        return "FILE"
    return {"path": "DIR", "whole": "N", "number": "X"}.get(rule.kind, "TEXT")


def _shown(value: object) -> str:
    """A value as one short line that is safe on any terminal."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(key: str) -> str:
    import difflib  # late: only a mistake needs it

    close = difflib.get_close_matches(key.replace("-", "_"), FIELDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; known: " + ", ".join(FIELDS)


def _read_config(path: Path, required: bool) -> dict[str, object]:
    import tomllib  # late: most runs have no config file

    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise UsageError(f"config file {path} does not exist; check the path given to --config") from None
        return {}
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}; expected a readable TOML file") from None
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"config file {path} is not valid TOML: {reason}; expected lines such as max_tokens = 512") from None


def _expected(rule: Rule) -> str:
    """What a rule accepts, in words."""
    if rule.kind == "choice":
        return "one of " + ", ".join(rule.choices + (("none",) if rule.optional else ()))
    if rule.kind == "switch":
        return "true or false"
    if rule.kind == "pairs":
        return "KEY=VALUE with KEY a name and VALUE true, false, a number or text"
    if rule.kind in ("text", "path"):
        return "valid Unicode text"
    noun = "a whole number" if rule.kind == "whole" else "a number"
    low = f" above {rule.above:g}" if rule.above > -math.inf else f" of at least {rule.low:g}" if rule.low > -math.inf else ""
    high = f" and below {rule.below:g}" if rule.below < math.inf else f" and at most {rule.high:g}" if rule.high < MOST else ""
    return noun + low + high + (" or none" if rule.optional else "")


def _refuse(where: str, rule: Rule, found: object) -> UsageError:
    return UsageError(f"{where}: expected {_expected(rule)}, found {_shown(found)}; correct or remove it")


def _checked(where: str, rule: Rule, value: object) -> Value:
    """A typed value (from TOML, or parsed) if the rule accepts it."""
    if rule.kind == "pairs" and isinstance(value, Mapping):
        return tuple((_key(where, rule, key), _scalar(where, rule, item)) for key, item in value.items())
    if rule.kind == "pairs" and isinstance(value, Sequence) and not isinstance(value, str):
        return _pairs(where, rule, value)
    if rule.kind == "switch" and isinstance(value, bool):
        return value
    if rule.kind in ("text", "path", "choice") and isinstance(value, str) and _is_unicode(value):
        if rule.optional and value.strip().lower() in ("", "none"):
            return None
        if rule.kind == "path":
            return os.path.expanduser(value)  # a config file has no shell that would do it
        if not rule.choices or value in rule.choices:
            return value
    if rule.kind == "whole" and rule.optional and isinstance(value, str) and value.strip().lower() in ("", "none"):
        return None
    if rule.kind in ("whole", "number") and not isinstance(value, bool) and isinstance(value, int if rule.kind == "whole" else int | float):
        number = cast(float, value)
        if rule.low <= number <= rule.high and rule.above < number < rule.below and abs(number) <= LARGEST:
            return number if rule.kind == "whole" else float(number)
    raise _refuse(where, rule, value)


def _from_text(where: str, rule: Rule, text: str) -> Value:
    """A value from text: an environment variable, /set, a flag."""
    if rule.kind == "switch":
        word = text.strip().lower()
        if word in TRUE | FALSE:
            return word in TRUE
    elif rule.kind == "pairs":
        return _pairs(where, rule, [part for part in text.split(",") if part.strip()])
    elif rule.kind in ("whole", "number"):
        with suppress(ValueError, UsageError):  # refused below, with the text as it was written
            if rule.optional and text.strip().lower() in ("", "none"):
                return None
            return _checked(where, rule, int(text) if rule.kind == "whole" else float(text))
    else:
        return _checked(where, rule, text)
    raise _refuse(where, rule, text)


def _pairs(where: str, rule: Rule, items: Sequence[object]) -> TemplateArgs:
    """Pairs from KEY=VALUE texts; the last of two equal keys counts."""
    found: dict[str, TemplateValue] = {}
    for item in items:
        key, equals, text = str(item).partition("=")
        if not equals:
            raise _refuse(where, rule, item)
        found[_key(where, rule, key.strip())] = _scalar(where, rule, _parsed(text.strip()))
    return tuple(found.items())


def _parsed(text: str) -> TemplateValue:
    """true, false, a JSON number or a quoted string as such, anything else as the text it is."""
    if text.lower() in ("true", "false"):  # Python's spelling too: as a string "False" would be true to a template
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) and value == value else text


def _key(where: str, rule: Rule, key: object) -> str:
    if isinstance(key, str) and key.isidentifier():
        return key
    raise _refuse(where, rule, key)


def _scalar(where: str, rule: Rule, value: object) -> TemplateValue:
    if isinstance(value, bool | int | float) and abs(value) < math.inf:
        return value
    if isinstance(value, str) and _is_unicode(value):
        return value
    raise _refuse(where, rule, value)


def _is_unicode(text: str) -> bool:
    """False where bytes of the command line or environment were not UTF-8: no tokenizer takes such text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
