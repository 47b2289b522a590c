"""The settings, from all their sources: one table of rules is what flags, environment, config file and the REPL's /set are derived from.

Precedence: defaults < config file < environment (LAWF_<FIELD>) < flags. A later source replaces a field as a whole.
Every mistake is a UsageError that names the place, what was expected, what was found and what to do.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from lawf_repl.errors import UsageError
from lawf_repl.rules import MOST, RULES, Rule, TemplateArgs, TemplateValue, Value, flag_of

LARGEST = sys.float_info.max
PREFIX = "LAWF_"                                            # of environment variables
OTHERS = frozenset({"LAWF_SESSIONS", "LAWF_NO_HISTORY"})    # that places.py reads
TRUE, FALSE = frozenset({"true", "on", "yes", "1"}), frozenset({"false", "off", "no", "0"})


def _default(name: str) -> Any:
    """The default of a field, from its rule."""
    return RULES[name].default


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with its type; what each field means and accepts is its line in rules.py."""

    model: str | None = _default("model")
    revision: str | None = _default("revision")
    adapter: str | None = _default("adapter")
    device: str = _default("device")
    dtype: str = _default("dtype")
    device_map: str | None = _default("device_map")
    quantize: str | None = _default("quantize")
    trust_remote_code: bool = _default("trust_remote_code")
    offline: bool = _default("offline")
    system: str | None = _default("system")
    template_args: TemplateArgs = _default("template_args")  # noqa: RUF009  # a tuple
    max_tokens: int = _default("max_tokens")
    temperature: float = _default("temperature")
    top_p: float = _default("top_p")
    seed: int = _default("seed")
    confidence: float = _default("confidence")
    target_p: float = _default("target_p")
    rank: int | None = _default("rank")
    layers: str = _default("layers")
    scope: str = _default("scope")
    preset: str = _default("preset")
    goal_p: float = _default("goal_p")
    variations: int = _default("variations")
    hold: float = _default("hold")
    rounds: int = _default("rounds")
    pull: float = _default("pull")
    replay_prompts: str | None = _default("replay_prompts")
    probes: str | None = _default("probes")
    max_steps: int = _default("max_steps")
    max_seconds: float = _default("max_seconds")
    json: bool = _default("json")
    vi: bool = _default("vi")
    theme: str = _default("theme")
    history: bool = _default("history")
    mouse: bool = _default("mouse")
    keys: TemplateArgs = _default("keys")  # noqa: RUF009  # a tuple
    plain: bool = _default("plain")


# What a preset sets; fields that are not in it have their defaults.
PRESETS: dict[str, dict[str, Value]] = {
    "quick": {"variations": 0, "rounds": 2},                     # the replay prompts alone are held
    "standard": {},
    "careful": {"variations": 160, "rounds": 8, "hold": 0.003},  # more of what stands near, and held more tightly
}
FIELDS: dict[str, Field[object]] = {one.name: one for one in fields(Settings)}


def rule_of(name: str) -> Rule:
    """The rule of a field that exists."""
    return RULES[name]


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
    variables = {f"{PREFIX}{name.upper()}": name for name in FIELDS}
    for variable in environ:
        if variable.startswith(PREFIX) and environ[variable] and variable not in variables.keys() | OTHERS:
            near = _did_you_mean(variable.removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in (*variables, *sorted(OTHERS))], PREFIX)
            raise UsageError(f"environment variable {_shown(variable)} is no setting of lawf: correct it or unset it{near}")
    for variable, name in variables.items():
        if text := environ.get(variable):  # set but empty counts as not set, as shells have it
            values[name] = _from_text(f"environment variable {variable}", rule_of(name), text)
    for name in FIELDS:
        given = flags.get(name)
        if given is not None:
            where = f"flag {flag_of(name)}"
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


def _shown(value: object) -> str:
    """A value as one short line that is safe on any terminal."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(key: str, known: Collection[str] = FIELDS.keys(), prefix: str = "") -> str:
    """The known name that a wrong one is close to, else all of them, with what they begin with in common put before each."""
    import difflib  # late: only a mistake needs it

    close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else "; known: " + ", ".join(prefix + name for name in known)


def _read_config(path: Path, required: bool) -> dict[str, object]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise UsageError(f"config file {path} does not exist; check the path given to --config") from None
        return {}
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}; expected a readable TOML file") from None
    import tomllib  # late: most runs have no config file

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
