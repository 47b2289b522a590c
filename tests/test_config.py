"""Settings: precedence, refusal by name, and one table from which everything follows."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lawf_repl.config import FIELDS, Settings, default_config_path, load_settings, rule_of, with_setting
from lawf_repl.errors import UsageError
from lawf_repl.rules import RULES, add_shared_flags

SHARED_FLAGS = set(
    "--model --revision --adapter --device --dtype --device-map --quantize --trust-remote-code --offline --system --template-arg "
    "--max-tokens --temperature --top-p --seed --confidence --target-p --rank --max-steps --max-seconds --json --plain --config "
    "--replay-prompts --probes --vi --theme".split())  # the last four came with the general set of prompts and the terminal


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_shared_flags(parser)
    return vars(parser.parse_args(arguments))


def config(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, path: Path | None = None) -> str:
    """The message with which something is refused; it must be one line."""
    with pytest.raises(UsageError) as caught:
        load_settings(flags or {}, environ or {}, path)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


@pytest.fixture(autouse=True)
def no_user_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("user") / "config.toml"
    monkeypatch.setattr("lawf_repl.config.default_config_path", lambda: path)
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings({}, {}, None) == Settings()


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    path = config(tmp_path, "rank = 5\nseed = 5\nmax_steps = 5")
    environ = {"LAWF_SEED": "6", "LAWF_MAX_STEPS": "6"}
    settings = load_settings({"max_steps": "7"}, environ, path)
    assert (settings.max_tokens, settings.rank, settings.seed, settings.max_steps) == (512, 5, 6, 7)


def test_a_flag_can_turn_off_what_the_file_turns_on(tmp_path: Path) -> None:
    path = config(tmp_path, "offline = true\nplain = true")
    settings = load_settings(parse("--no-offline"), {}, path)
    assert settings.plain and not settings.offline


def test_the_users_own_file_is_read_where_no_file_is_named(no_user_config: Path) -> None:
    no_user_config.write_text("rank = 9")
    assert load_settings({}, {}, None).rank == 9


def test_the_default_place_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the variable is Linux's")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_config_path() == tmp_path / "lawf" / "config.toml"


def test_every_type_is_read_from_a_file(tmp_path: Path) -> None:
    settings = load_settings({}, {}, config(tmp_path, """
        model = "~/m"
        system = "Sei kurz. 简短"
        temperature = 1
        quantize = "4bit"
        trust_remote_code = true
        [template_args]
        enable_thinking = false
        depth = 2
    """))
    assert settings.model == str(Path("~/m").expanduser())
    assert (settings.system, settings.temperature, settings.quantize) == ("Sei kurz. 简短", 1.0, "4bit")
    assert type(settings.temperature) is float and settings.trust_remote_code
    assert settings.template_args == (("enable_thinking", False), ("depth", 2))


def test_a_number_that_may_be_none_is_told_so_everywhere(tmp_path: Path) -> None:
    assert load_settings({}, {}, config(tmp_path, 'rank = "none"')).rank is None
    assert load_settings({}, {"LAWF_RANK": "none"}, config(tmp_path, "rank = 3")).rank is None
    assert load_settings({"rank": "none"}, {"LAWF_RANK": "7"}, None).rank is None
    assert "or none" in refused(path=config(tmp_path, 'rank = "many"'))
    assert "or none" not in refused(path=config(tmp_path, 'seed = "none"'))


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert load_settings({}, {}, config(tmp_path, "\ufeffrank = 3")).rank == 3


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    message = refused(path=config(tmp_path, "max_token = 3"))
    assert "'max_token'" in message and "did you mean 'max_tokens'?" in message
    assert "'zzz'" in refused(path=config(tmp_path, "zzz = 3"))
    assert "'training'" in refused(path=config(tmp_path, "[training]\nrank = 3"))


@pytest.mark.parametrize("content", [
    'max_tokens = "512"', "max_tokens = 5.0", "max_tokens = true", "max_tokens = 0", "max_tokens = 9223372036854775808",
    "temperature = -0.1", "temperature = nan", "temperature = inf", f"temperature = 1{'0' * 400}", "top_p = 0", "top_p = 1.1", "seed = -1",
    "confidence = 0", "target_p = 1.0", "target_p = 0", "rank = 0", "goal_p = 0", "goal_p = 1.0",
    "variations = -1", "hold = 0", "rounds = 0", "pull = -1", "max_seconds = 0",
    'device = "gpu"', "device = 3", 'dtype = "int8"', 'layers = "lower"', 'quantize = "2bit"', "model = 3", 'offline = "yes"', "json = 1",
    'template_args = "enable_thinking"', "template_args = 3", "template_args = [3]", "template_args.a = [1]", "template_args.a = nan",
    'template_args = {"not a name" = 1}',
])
def test_a_wrong_type_or_range_is_refused_by_name(tmp_path: Path, content: str) -> None:
    message = refused(path=config(tmp_path, content))
    assert f"config.toml: {content.split('=')[0].split('.')[0].strip()}: expected " in message
    assert "found " in message


@pytest.mark.parametrize(("content", "part"), [
    (b"rank 3", "not valid TOML"), (b"rank = 3\nrank = 4", "not valid TOML"), (b"a = " + b"[" * 5000, "not valid TOML"),
    (b"system = '\xff'", "not UTF-8 (byte 10)"),
])
def test_a_file_that_is_no_toml_gives_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    assert part in refused(path=config(tmp_path, content))


def test_a_named_file_must_exist_and_be_a_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(path=tmp_path / "none.toml")
    assert "cannot be read" in refused(path=tmp_path)


def test_mistakes_in_the_environment_and_in_flags_say_where() -> None:
    assert refused(environ={"LAWF_RANK": "four"}).startswith("environment variable LAWF_RANK: expected a whole number of at least 1")
    assert refused(flags={"top_p": "2"}).startswith("flag --top-p: expected a number above 0 and at most 1, found '2'")
    assert refused(flags={"template_args": ["a"]}).startswith("flag --template-arg: expected KEY=VALUE")
    assert "LAWF_OFFLINE: expected true or false" in refused(environ={"LAWF_OFFLINE": "maybe"})
    assert "LAWF_SYSTEM: expected valid Unicode" in refused(environ={"LAWF_SYSTEM": "\udcff"})


def test_other_variables_are_left_alone_and_an_empty_one_is_not_set() -> None:
    assert load_settings({}, {"LAWF_NO_HISTORY": "1", "LAWF_SESSIONS": "/x", "LAWF_RANK": "", "RANK": "7"}, None) == Settings()


def test_a_variable_that_is_no_setting_is_refused() -> None:
    assert refused(environ={"LAWF_TEMPRATURE": "3"}).endswith("correct it or unset it; did you mean 'LAWF_TEMPERATURE'?")
    assert "did you mean 'LAWF_SESSIONS'?" in refused(environ={"LAWF_SESION": "x"})
    assert "'LAWF_ZZZZ' is no setting of lawf: " in (said := refused(environ={"LAWF_ZZZZ": "x"})) and "known: LAWF_MODEL, LAWF_REVISION" in said
    assert load_settings({}, {"LAWF_TEMPRATURE": "", "LAWFUL": "1"}, None) == Settings()


def test_names_that_are_no_settings_are_passed_over_in_flags() -> None:
    assert load_settings({"prompt": "x", "command": "fix", "rank": None}, {}, None) == Settings()


@pytest.mark.parametrize(("text", "value"), [
    ("false", False), ("False", False), ("TRUE", True), ("3", 3), ("-0.5", -0.5), ("1e3", 1000.0), ('"3"', "3"), ("a=b", "a=b"),
    ("null", "null"), ("NaN", "NaN"), ("007", "007"), ("", ""), ("[1]", "[1]"), ("德语", "德语"),
])
def test_template_arguments_are_typed(text: str, value: object) -> None:
    (key, found), = load_settings(parse("--template-arg", f"k={text}"), {}, None).template_args
    assert (key, found, type(found)) == ("k", value, type(value))


def test_template_arguments_repeat_and_the_last_of_equal_keys_counts() -> None:
    settings = load_settings(parse("--template-arg", "a=1", "--template-arg", "b=x", "--template-arg", "a=2"), {}, None)
    assert settings.template_args == (("a", 2), ("b", "x"))
    assert load_settings({}, {"LAWF_TEMPLATE_ARGS": "a=2, b=x"}, None).template_args == settings.template_args


def test_the_flags_are_those_of_the_design_and_leave_no_trace_if_not_given() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_shared_flags(parser)
    shown = {option for action in parser._actions for option in action.option_strings if not option.startswith("--no-")}
    assert shown == SHARED_FLAGS
    assert parse() == {}
    assert parser.format_help().count("\n") > len(SHARED_FLAGS)


def test_every_field_has_a_line_of_meaning_and_a_default_that_its_rule_accepts() -> None:
    for one in fields(Settings):
        meaning = rule_of(one.name).meaning
        assert meaning and "\n" not in meaning
        if not isinstance(one.default, tuple):
            assert with_setting(Settings(), one.name, str(one.default)) == Settings()


def test_every_field_has_a_rule_and_the_type_that_the_rule_gives() -> None:
    plain = {"text": "str", "path": "str", "choice": "str", "whole": "int", "number": "float", "switch": "bool", "pairs": "TemplateArgs"}
    assert list(FIELDS) == list(RULES)
    for name, rule in RULES.items():
        assert FIELDS[name].type == plain[rule.kind] + (" | None" if rule.optional else "")


@given(st.sampled_from(sorted(FIELDS)), st.text(st.characters(), max_size=20))
@hypothesis_settings(deadline=None)
def test_any_text_is_taken_or_refused_in_one_line(name: str, text: str) -> None:
    try:
        settings = with_setting(Settings(), name, text)
    except UsageError as error:
        assert "\n" not in str(error) and name in str(error)
    else:
        hash(settings)
        assert type(getattr(settings, name)) in (str, int, float, bool, tuple, type(None))


def test_set_changes_one_field_and_nothing_else() -> None:
    before = Settings()
    after = with_setting(before, "max-tokens", " 64 ")
    assert after.max_tokens == 64 and before == Settings() and with_setting(after, "max_tokens", "512") == before
    assert with_setting(Settings(system="x"), "system", "none").system is None
    with pytest.raises(UsageError, match="did you mean 'rank'"):
        with_setting(before, "rnk", "3")


def test_importing_settings_is_light() -> None:
    code = ("import sys, lawf_repl.config; "
            "print(sorted({'torch', 'transformers', 'peft', 'rich', 'prompt_toolkit', 'platformdirs', 'filelock'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_preset_sets_what_is_not_set_itself(tmp_path: Path) -> None:
    assert load_settings({}, {}, config(tmp_path, "")) == Settings()
    careful = load_settings({"preset": "careful"}, {}, config(tmp_path, "hold = 0.5"))
    assert (careful.variations, careful.rounds, careful.hold) == (160, 8, 0.5)
    assert load_settings({"preset": "standard"}, {}, config(tmp_path, 'preset = "quick"')) == Settings()
    changed = with_setting(with_setting(Settings(), "preset", "careful"), "preset", "quick")
    assert (changed.variations, changed.rounds, changed.hold) == (0, 2, Settings().hold)
    assert with_setting(changed, "preset", "standard") == Settings()
