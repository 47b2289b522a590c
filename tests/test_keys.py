"""Keys of the answer view: the config file changes them, and what cannot be is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from lawf_repl.errors import UsageError
from lawf_repl.ui.keys import BINDINGS, Keymap
from lawf_repl.ui.picker import Picker
from lawf_repl.ui.port import Action
from lawf_repl.ui.screen import hint, keys_help, run_picker
from lawf_repl.ui.theme import Theme
from tests.test_picker import SYDNEY, Lookup


def pressed(keys: Keymap, bytes_: str) -> Action:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(bytes_)
        return run_picker(Picker(SYDNEY, Lookup(), keys=keys), Theme())


def test_every_key_does_one_thing() -> None:
    keys = [key for binding in BINDINGS for key in binding.keys]
    assert len(keys) == len(set(keys)) and all(Keymap().action(key) == binding.name for binding in BINDINGS for key in binding.keys)


def test_own_keys_take_the_place_of_the_default_ones() -> None:
    keys = Keymap({"train": "f5 T", "accept": "c-t", "fix": "f"})
    assert pressed(keys, "\x1b[15~") == Action("train") and pressed(keys, "T") == Action("train")
    assert pressed(keys, "\x14") == Action("accept")
    assert pressed(keys, "fRome\r") == Action("replace", 3, text=" Rome")
    assert pressed(keys, "tom\r") == Action("replace", 3, text=" tom"), "a key that means nothing any more is typed"
    assert "f fix" in hint("view", keys) and "ctrl-t accept" in hint("view", keys) and "f types another" in hint("alternatives", keys)
    assert any("ctrl-t" in shown and "f5" in shown for shown, _ in keys_help(keys))


@pytest.mark.parametrize(("own", "message"), [
    ({"trian": "x"}, "no action 'trian'; did you mean 'train'"), ({"zzz": "x"}, "no action 'zzz'; known: left"),
    ({"train": "f99"}, "'f99' of train is no key"), ({"train": "cntrl-t"}, "is no key"), ({"train": ""}, "one or more keys for train"),
    ({"train": "z", "accept": "z"}, "given to both train and accept"), ({"train": "c-c"}, "keeps its meaning"),
    ({"train": "a"}, "'a' was all that does accept: give accept another key"), ({"train": "c-d"}, "keeps its meaning"),
])
def test_what_cannot_be_is_named(own: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Keymap(own)


def test_taking_a_key_is_fine_where_its_owner_gets_another() -> None:
    keys = Keymap({"train": "a", "accept": "t"})
    assert keys.action("a") == "train" and keys.action("t") == "accept"


@given(st.dictionaries(st.one_of(st.sampled_from([binding.name for binding in BINDINGS]), st.text(max_size=6)), st.text(max_size=8), max_size=4))
def test_any_table_is_taken_or_refused_in_one_line(own: dict[str, str]) -> None:
    try:
        keys = Keymap(own)
    except UsageError as error:
        assert "\n" not in str(error) and str(error).startswith("keys: ") and str(error).isprintable()
    else:
        assert all(keys.keys[binding.name] for binding in BINDINGS)
