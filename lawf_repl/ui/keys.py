"""The keys of the answer view: one table of what can be done, with its keys, that the config file can change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from prompt_toolkit.keys import ALL_KEYS

from lawf_repl.errors import UsageError

# prompt_toolkit's key sequences, and the names under which the view knows them.
KEY_NAMES: dict[tuple[str, ...], str] = {
    ("left",): "left", ("right",): "right", ("up",): "up", ("down",): "down", ("enter",): "enter", ("escape",): "escape",
    ("tab",): "tab", ("backspace",): "backspace", ("delete",): "delete", ("home",): "home", ("end",): "end", ("c-a",): "home",
    ("c-e",): "end", ("c-u",): "kill", ("c-w",): "word", ("c-r",): "redo", ("c-c",): "interrupt", ("<sigint>",): "interrupt",
    ("c-d",): "eof", ("pageup",): "pageup", ("pagedown",): "pagedown", ("escape", " "): "lead", ("escape", "enter"): "newline",
}
ALWAYS = frozenset({"interrupt", "eof", "c-c", "c-d", "c-m", "c-j", "<sigint>"})  # keys that keep their meaning


@dataclass(frozen=True, slots=True)
class Binding:
    """Something that can be done in the answer view, its keys by default, and what the help says of it."""

    name: str
    keys: tuple[str, ...]
    meaning: str


BINDINGS: tuple[Binding, ...] = (
    Binding("left", ("left", "h"), "the token before"),
    Binding("right", ("right", "l"), "the next token"),
    Binding("up", ("up", "k"), "the line above"),
    Binding("down", ("down", "j"), "the line below"),
    Binding("page_up", ("pageup",), "ten lines up"),
    Binding("page_down", ("pagedown",), "ten lines down"),
    Binding("next_word", ("w",), "the next word"),
    Binding("previous_word", ("b",), "the word before"),
    Binding("line_start", ("0",), "the first token of the line"),
    Binding("line_end", ("$",), "the last token of the line"),
    Binding("first", ("home",), "the first token of the answer"),
    Binding("last", ("end",), "the last token of the answer"),
    Binding("next_unsure", ("n",), "the next unsure token (p < 0.5, underlined)"),
    Binding("previous_unsure", ("N",), "the unsure token before"),
    Binding("others", ("enter",), "other tokens that could stand here; 1-9 takes one"),
    Binding("fix", ("c", "i"), "type the text that should stand here; tab: leading space"),
    Binding("delete", ("x", "delete", "backspace"), "delete the token"),
    Binding("end_here", ("e",), "end the answer here"),
    Binding("go_on", ("+",), "go on after the answer's end"),
    Binding("undo", ("u",), "undo"),
    Binding("redo", ("redo",), "redo"),
    Binding("accept", ("a",), "the answer is right: accept it"),
    Binding("train", ("t",), "train"),
    Binding("keys", ("?",), "these keys"),
    Binding("back", ("q", "escape"), "back to the prompt"),
)
SHOWN_KEYS = {"left": "←", "right": "→", "up": "↑", "down": "↓", "escape": "esc", "redo": "ctrl-r", "pageup": "page up", "pagedown": "page down",
              "backspace": "backspace", "delete": "del"}


class Keymap:
    """Which key does what in the answer view."""

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        """`own` gives for some names of BINDINGS the keys, separated by spaces, that take the place of the default ones.

        A key is one character, or a name of prompt_toolkit's such as f2, c-t or s-left. Raises UsageError that names what is wrong.
        """
        names = {binding.name: binding for binding in BINDINGS}
        taken: dict[str, str] = {}
        for name, keys in (own or {}).items():
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
                raise UsageError(f"keys: there is no action {name!a}; {hint}")
            for key in _keys(name, keys):
                if taken.setdefault(key, name) != name:
                    raise UsageError(f"keys: {key!a} is given to both {taken[key]} and {name}: a key can do one thing")
        self.keys: dict[str, tuple[str, ...]] = {}
        for name, binding in names.items():
            mine = tuple(key for key, owner in taken.items() if owner == name)
            self.keys[name] = mine or tuple(key for key in binding.keys if key not in taken)
            if not self.keys[name]:
                raise UsageError(f"keys: {' and '.join(map(ascii, binding.keys))} was all that does {name}: give {name} another key")
        self._action = {key: name for name, keys in self.keys.items() for key in keys}
        self.own = tuple(taken)

    def action(self, key: str) -> str | None:
        """What a key does, by its character or its name; None for one that does nothing of its own."""
        return self._action.get(key)

    def shown(self, name: str, count: int = 1) -> str:
        """The first keys of an action as people write them."""
        return " ".join(SHOWN_KEYS.get(key, key.replace("c-", "ctrl-")) for key in self.keys[name][:count])


def _keys(name: str, keys: object) -> list[str]:
    if not isinstance(keys, str) or not keys.split():
        raise UsageError(f"keys: expected one or more keys for {name}, separated by spaces, found {keys!a}")
    out = []
    for word in keys.split():
        key = word if len(word) == 1 else word.lower()
        if len(key) > 1 and key not in ALL_KEYS:
            close = get_close_matches(key, ALL_KEYS, n=1)
            raise UsageError(f"keys: {word!a} of {name} is no key" + (f"; did you mean {close[0]}?" if close else "")
                             + "; expected one character, or a name such as f2, c-t, s-left")
        known = KEY_NAMES.get((key,), key)
        if known in ALWAYS or key in ALWAYS:
            raise UsageError(f"keys: {word!a} of {name} keeps its meaning: take another key")
        if len(key) == 1 and not key.isprintable():
            raise UsageError(f"keys: {word!a} of {name} is no key that can be typed")
        out.append(known)
    return out


DEFAULT = Keymap()
