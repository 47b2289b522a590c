"""The answer view: a state machine that no key sequence breaks, and the same on a real prompt_toolkit application."""

from __future__ import annotations

import itertools
import random
import time
from threading import Timer

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len

from lawf_repl.errors import FixError
from lawf_repl.records import Alternative, Token
from lawf_repl.ui.keys import KEY_NAMES, Keymap
from lawf_repl.ui.motion import Line, least_sure
from lawf_repl.ui.picker import Picker
from lawf_repl.ui.port import Action
from lawf_repl.ui.screen import HINTS, NOTE_ROWS, draw, hint, keys_help, run_picker
from lawf_repl.ui.theme import Theme


def token(text: str, p: float = 0.97, id_: int = 7, special: bool = False) -> Token:
    return Token(id_, text, p, 0, 1.0, (Alternative(id_, text, p), Alternative(90, " Canberra", 0.2), Alternative(91, " Perth", 0.1)),
                 special, partial=text == "" and not special)


END = token("<|im_end|>", special=True, id_=0)
SYDNEY = (token("The", id_=1), token(" capital", 0.8, 2), token(" is", 0.45, 3), token(" Sydney", 0.3, 4), token(".", id_=5), END)
NASTY = (token("a\x1b[31m"), token(""), token(""), token("豆", 0.2), token("\n\n", 0.4), token("\t"), token("\u202e[b]", 0.1), token("  "),
         token("包" * 60), token(" word" * 30), token(""), END)


class Lookup:
    """Answers at once, and refuses what contains a bang."""

    def lead(self, position: int) -> str:
        return " " if position in (1, 2, 3) else ""

    def preview(self, position: int, text: str) -> tuple[Token, ...]:
        if "!" in text:
            raise FixError("this fix cannot be tokenized")
        return tuple(token(part, 0.2) for part in text)

    def reference(self) -> tuple[float, ...] | None:
        return None

    def token_bytes(self, id_: int) -> bytes:
        return b"\xe8\xb1\x86"

    def alternatives(self, position: int, count: int) -> tuple[Alternative, ...]:
        return tuple(Alternative(200 + number, f" alt{number}", 0.4 / (number + 1)) for number in range(count))


def picker(tokens: tuple[Token, ...] = SYDNEY, **options: int) -> Picker:
    return Picker(tokens, Lookup(), cursor=options.get("cursor"))


def type_text(view: Picker, text: str) -> Action | None:
    """Characters, and <names> of other keys; the last Action."""
    action = None
    for word in text.replace("<", "\0<").replace(">", ">\0").split("\0"):
        keys = [(word[1:-1], "")] if word.startswith("<") else [("char", character) for character in word]
        for key, data in keys:
            action = view.press(key, data)
            while (question := view.take_question()) is not None:
                view.answer(question)
    return action


def screen(view: Picker) -> list[str]:
    return ["".join(cell.text for cell in row) for row in draw(view)]


def test_opens_on_the_least_sure_token() -> None:
    assert picker().cursor == 3 and picker(cursor=1).cursor == 1 and picker(cursor=99).cursor == 5
    assert Picker(SYDNEY, Lookup(), fixed=frozenset({3})).cursor == 2, "what a fix has set is not unsure"
    assert least_sure(SYDNEY, 4, frozenset()) == 4 and least_sure((), 0, frozenset()) == 0


def test_motions() -> None:
    view = picker()
    for keys, expected in (("h", 2), ("l", 3), ("<left>", 2), ("<right>", 3), ("b", 2), ("w", 3), ("0", 0), ("$", 5), ("n", 2), ("n", 3),
                           ("n", 2),
                           ("N", 3), ("<home>", 0), ("h", 0), ("<end>", 5), ("l", 5), ("k", 5)):
        assert type_text(view, keys) is None
        assert view.cursor == expected, keys


def test_lines() -> None:
    tokens = (token("one"), token(" two"), token("\n"), token("three"), token(" four"))
    view = picker(tokens, cursor=1)
    for keys, expected in (("j", 3), ("j", 3), ("l", 4), ("0", 3), ("k", 0), ("$", 2), ("<down>", 4), ("<up>", 1), ("<pagedown>", 3)):
        type_text(view, keys)
        assert view.cursor == expected, keys


@pytest.mark.parametrize(("keys", "action"), [
    ("c Canberra<enter>", Action("replace", 3, text=" Canberra")), ("cCanberra<enter>", Action("replace", 3, text=" Canberra")),
    ("Rome<enter>", Action("replace", 3, text=" Rome")), (" Rome<enter>", Action("replace", 3, text=" Rome")),
    ("iRome<tab><enter>", Action("replace", 3, text="Rome")), ("iRome<lead><lead><enter>", Action("replace", 3, text=" Rome")),
    ("7<enter>", Action("replace", 3, text=" 7")), ("堪培拉<tab><enter>", Action("replace", 3, text="堪培拉")),
    ("cab<left>X<home>Y<end>Z<backspace><enter>", Action("replace", 3, text=" YaXb")), ("ca<newline>b<enter>", Action("replace", 3,
                                                                                                                      text=" a\nb")),
    ("0The<tab><tab><enter>", Action("replace", 0, text="The")), ("0cA<tab><enter>", Action("replace", 0, text=" A")),
    ("x", Action("delete", 3, count=1)), ("e", Action("end", 3)), ("+more<tab><enter>", Action("go_on", 5, text=" more")),
    ("<enter>2", Action("pick", 3, token_id=90)), ("<enter>j<enter>", Action("pick", 3, token_id=90)), ("u", Action("undo")),
    ("<redo>", Action("redo")), ("a", Action("accept")), ("t", Action("train")), ("q", Action("back")), ("<escape>", Action("back")),
    ("cabc<escape><escape>", Action("back")), ("cabc<interrupt>", Action("back")), ("?xu", Action("undo")),
    ("<enter><escape>x", Action("delete", 3)),
    ("/", Action("back", text="/")), ("c/x<enter>", Action("replace", 3, text=" /x")),
    ("0/", Action("back", text="/")), ("5/6<enter>", Action("replace", 3, text=" 5/6")),
])
def test_keys_become_actions(keys: str, action: Action) -> None:
    view = picker()
    found = None
    for part in keys.replace("<", "\0<").replace(">", ">\0").split("\0"):
        for key in [part] if part.startswith("<") else list(part):
            found = found or type_text(view, key)
    assert found == action


def test_what_makes_no_sense_is_said_and_does_nothing() -> None:
    view = picker(cursor=5)
    for keys in ("x", "e", "<enter>1", "<escape>"):
        if keys != "<escape>":
            assert type_text(view, keys) is None and view.note
        else:
            type_text(view, keys)
    assert type_text(view, "c<enter>") is None
    assert "nothing typed" in view.note
    assert type_text(picker(()), "x") is None and type_text(picker(()), "+a<enter>") == Action("go_on", 0, text="a")


def test_a_character_of_several_tokens_is_edited_as_one() -> None:
    view = picker(NASTY, cursor=2)
    assert view.character == (1, 3) and "2/3 of 豆" in "\n".join(screen(view))
    assert type_text(view, "x") == Action("delete", 1, count=3)
    assert type_text(view, "e") == Action("end", 1)
    assert type_text(view, "好<enter>") == Action("replace", 1, text=" 好"), "the fix starts where the character does"
    view = picker(NASTY, cursor=0)
    for expected in (1, 2, 3, 4):  # each id can be selected
        type_text(view, "l")
        assert view.cursor == expected


def test_chips_follow_the_typing_and_errors_are_shown() -> None:
    view = picker()
    type_text(view, "cab")
    assert [chip.text for chip in view.chips] == [" ", "a", "b"]
    assert "·ab" in screen(view)[-3] and "20.0% #1" in screen(view)[-2]
    type_text(view, "!")
    assert not view.chips and "cannot be tokenized" in "\n".join(screen(view))
    type_text(view, "<backspace>")
    assert [chip.text for chip in view.chips] == [" ", "a", "b"]
    assert not view.chip_note


def test_of_more_chips_than_there_is_room_for_the_last_are_shown() -> None:
    view = picker()
    type_text(view, "c" + "abcdefghijklmnopqrstuvwxyz")
    row = screen(view)[-2]
    assert row.startswith("       … ") and "z 20.0% #1" in row and "a 20" not in row and not row.rstrip().endswith("…")


def test_alternatives_show_all_mass_and_more_when_scrolled() -> None:
    view = picker()
    type_text(view, "<enter>")
    assert [row.label for row in view.rows] == ["·Sydney", "·Canberra", "·Perth", "all others"]
    assert sum(row.p for row in view.rows) == pytest.approx(1)
    assert type_text(view, "1") is None and "stands there already" in view.note
    type_text(view, "jjj")
    assert len(view.rows) > 20
    for _ in range(40):
        type_text(view, "j")
    assert type_text(view, "<enter>") is None and "all others" in view.note


def test_line_editing() -> None:
    line = Line()
    line.insert("one two")
    assert line.press("word") and line.text == "one " and line.press("kill") and line.text == "" and not line.press("f1")
    line.insert("abc")
    assert line.press("home") and line.press("delete") and line.text == "bc" and line.press("backspace") and line.text == "bc"


@pytest.mark.parametrize("size", [(80, 24), (60, 15), (20, 8), (200, 50), (6, 3)])
def test_every_screen_fits_and_is_safe(size: tuple[int, int]) -> None:
    for tokens in (SYDNEY, NASTY, (), (token("x"),) * 3000):
        for keys in ("", "?", "<enter>", "cfix \u202e text", "+on"):
            view = picker(tokens)
            view.resize(*size)
            type_text(view, keys)
            rows = screen(view)
            assert all(cell_len(row) < max(size[0], 8) for row in rows)
            assert not any(character in "\x1b\u202e\n\t" for row in rows for character in row)
            assert size[1] < 20 or len(rows) <= size[1]
            assert len(tokens) < 6 or size[0] < 20 or any(cell.look in ("cursor", "dropped") for row in draw(view) for cell in row)


def test_the_tokens_of_one_character_are_shown_by_their_bytes() -> None:
    class Halves(Lookup):
        def preview(self, position: int, text: str) -> tuple[Token, ...]:
            return token("", 0.2, 31), token(text, 0.9, 32)

        def token_bytes(self, id_: int) -> bytes:
            return {31: b"\xe5\x8c", 32: b"\x97"}[id_]

    view = Picker(SYDNEY, Halves(), cursor=0)
    type_text(view, "c北")
    assert "0xe58c 20.0% #1   0x97 90.0% #1" in screen(view)[-2]
    view = Picker((token("", 0.2, 31), token("北", 0.9, 32)), Halves(), cursor=0)
    type_text(view, "<enter>")
    assert [row.label for row in view.rows if row.current] == ["0xe58c"]


def test_the_help_says_what_a_slash_does_where_it_is_no_key_of_ones_own() -> None:
    assert ("/", "begin a command at the prompt") in keys_help() and picker(()).press("char", "/") == Action("back", text="/")
    own = Keymap({"next_unsure": "/"})
    view = Picker(SYDNEY, Lookup(), keys=own)
    assert view.press("char", "/") is None and view.mode == "view" and not any("a command" in meaning for _, meaning in keys_help(own))
    assert picker().press("paste", "/x") is None, "what is pasted is a fix"


def test_hints_fit_80_columns() -> None:
    assert hint("view").count("  ") == 7, "at 80 columns there is room for all"
    for mode in ("view", *HINTS):
        for width in (57, 77):
            assert len(hint(mode, width=width)) <= width
        shown = [hint(mode, width=width).split("  ") for width in (40, 57, 77, 200)]
        assert all(set(few) <= set(more) for few, more in itertools.pairwise(shown)), "what does not fit is left out as a whole"
    assert hint("view", width=57).endswith("t train  ? keys") and all(len(keys) <= 20 and len(meaning) <= 35 for keys, meaning in keys_help())


def test_an_answer_that_did_not_come_to_its_end_goes_on_without_a_text() -> None:
    view = picker(SYDNEY[:-1])
    assert type_text(view, "+<enter>") == Action("go_on", 5) and type_text(picker(()), "+<enter>") == Action("go_on", 0)
    assert "with a text or without" in screen(view)[-1]
    view = picker()
    assert type_text(view, "+<enter>") is None and "the answer stays as it is" in view.note
    view = picker((token("x\n"),) * 100, cursor=0)
    type_text(view, "+a")
    assert "-101 of 101" in "\n".join(screen(view)), "where the text comes in is what is shown"


def test_a_long_note_is_folded() -> None:
    view = picker()
    view.resize(40, 24)
    view.note = "cut at 512 tokens: /end 512 ends it; /set max_tokens, then + enter goes on " + "包" * 15
    shown = " ".join(row.strip() for row in screen(view)[3:])
    assert shown.replace("包 包", "包包").split() == view.note.split()
    view.note *= 5
    assert len(screen(view)) == 3 + NOTE_ROWS and screen(view)[-1].endswith("…"), "unless it never ends, and then that is shown"


def test_a_click_goes_to_a_token_or_takes_an_alternative() -> None:
    view = picker()
    assert view.click("token", 1) is None and view.cursor == 1
    assert view.click("token", 99) is None and view.cursor == 1 and view.click("row", 0) is None and view.click("", 0) is None
    type_text(view, "<enter>")
    assert view.click("row", 1) == Action("pick", 1, token_id=90)
    assert view.click("token", 3) is None and (view.mode, view.cursor) == ("view", 3)
    type_text(view, "cab")
    assert view.click("token", 0) is None and (view.mode, view.cursor) == ("fix", 3)
    cells = [cell for row in draw(picker()) for cell in row]
    assert [cell.target for cell in cells if cell.target] == [("token", number) for number in range(6)]


def test_the_mouse_in_a_terminal() -> None:
    class Answering(DummyOutput):
        """A terminal that tells where the cursor is, without which nobody knows what was clicked."""

        responds_to_cpr = True

    click = "\x1b[<0;{0};1M\x1b[<0;{0};1m"  # SGR mouse reports: button down and up in the first row
    for column, expected in ((8, Action("delete", 1)), (4, Action("delete", 0)), (22, Action("delete", 3))):
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=Answering()):
            Timer(0.2, pipe.send_text, ["\x1b[1;1R"]).start()
            Timer(0.4, pipe.send_text, [click.format(column) + "x"]).start()
            assert run_picker(picker(), Theme()) == expected


def test_what_a_token_is_made_of_and_what_the_base_thinks_of_it_is_shown() -> None:
    view = picker()
    assert "id 4  0xe8b186  p 30.0%  #1" in "\n".join(screen(view)) and "base" not in "\n".join(screen(view))
    view.reference = (1.0, 0.5, 0.25, 0.125, 1.0, 1.0)
    assert "p 30.0%  base 12.5%  #1" in "\n".join(screen(view))


NAMES = [*sorted(set(KEY_NAMES.values())), "paste", *["char"] * 30]
CHARACTERS = "hjklwb0$nNcixeuat?+q123456789 zé豆\u202e\u0301!Z"


def test_no_key_sequence_breaks_it() -> None:
    chance = random.Random(0)
    for number in range(2000):
        view = picker(chance.choice([SYDNEY, NASTY, (), (END,), (token(""),)]))
        view.resize(chance.choice([5, 20, 80, 200]), chance.choice([3, 10, 24]))
        for _ in range(chance.randrange(1, 25)):
            key = chance.choice(NAMES)
            action = view.press(key, chance.choice(CHARACTERS) if key == "char" else "pasted\ntext" if key == "paste" else "")
            question = view.take_question()
            if question is not None and chance.random() < 0.8:
                view.answer(question)
            assert action is None or 0 <= action.position <= len(view.tokens), number
            assert not view.tokens or 0 <= view.cursor < len(view.tokens)
            assert view.mode == "view" or view.mode == "keys" or view.tokens or view.mode == "go_on"
        draw(view)


def run_keys(keys: str, tokens: tuple[Token, ...] = SYDNEY) -> Action:
    """The real application, fed with the bytes of a terminal."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return run_picker(picker(tokens), Theme())


@pytest.mark.parametrize(("keys", "action"), [
    ("cCanberra\r", Action("replace", 3, text=" Canberra")), ("\x1b[D\x1b[Cx", Action("delete", 3)), ("c\x1b Rome\r", Action("replace", 3,
                                                                                                                             text="Rome")),
    ("\x1b[200~New\r\nYork\x1b[201~\r", Action("replace", 3, text=" New\nYork")), ("\x03", Action("back")), ("\x04", Action("back")),
    ("\x12", Action("redo")), ("ca\x1b\rb\r", Action("replace", 3, text=" a\nb")), ("\r2", Action("pick", 3, token_id=90)),
    ("axt", Action("accept")),
])
def test_in_a_terminal(keys: str, action: Action) -> None:
    assert run_keys(keys) == action


def test_escape_leaves_within_a_moment() -> None:
    started = time.monotonic()
    assert run_keys("\x1b") == Action("back")
    assert time.monotonic() - started < 5


def test_random_bytes_in_a_terminal() -> None:
    chance = random.Random(1)
    sequences = [*CHARACTERS, "\x1b[A", "\x1b[B", "\x1b[D", "\x1b", "\r", "\t", "\x7f", "\x00", "\x1b[<0;1;1M", "\x1bOP", "\x1b[5~"]
    for _ in range(60):
        keys = "".join(chance.choice(sequences) for _ in range(chance.randrange(40)))
        assert isinstance(run_keys(keys + "\x03"), Action)


def test_ten_thousand_key_sequences_in_a_terminal() -> None:
    """Through the terminal's own bytes, in one application after the other: each goes on until a sequence leaves the view."""
    chance = random.Random(2)
    sequences = [*CHARACTERS, "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[H", "\x1b[F", "\x1b[3~", "\x1b[5~", "\x1b[6~", "\x1bOP", "\x1bOS",
                 "\x1b[Z", "\x1b\r", "\x1b ", "\r", "\t", "\x7f", "\x00", "\x01", "\x05", "\x0b", "\x12", "\x15", "\x17", "\x1f", "\x1b[<0;3;2M", 
                 "\x1b[<0;3;2m", "\x1b[<64;1;1M", "\x1b[200~a\x1b]0;x\x07\r\nb\x1b[201~", "\x1b[999;999R", "\x1b[1;5C",
                 "豆", "\u202e", "é", "\U0001f600"]
    sent = 0
    while sent < 10_000:
        block = ["".join(chance.choice(sequences) for _ in range(chance.randrange(1, 6))) for _ in range(250)]
        sent += len(block)
        tokens = chance.choice([SYDNEY, NASTY, (), (END,), (token(""),)])
        left: list[str] = []

        class Watched(Picker):
            def press(self, key: str, data: str = "", left: list[str] = left) -> Action | None:
                left += [key] if key == "interrupt" else []
                return super().press(key, data)

        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text("".join(block) + "\x03")
            while not left:  # the view is entered again wherever a key leaves it, until the last one
                assert isinstance(run_picker(Watched(tokens, Lookup()), Theme()), Action)


def test_a_narrow_terminal_redraws() -> None:
    class Narrow(DummyOutput):
        def get_size(self) -> Size:
            return Size(rows=6, columns=12)

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=Narrow()):
        pipe.send_text("\rjjq?\rcabc\x03")
        assert run_picker(picker(NASTY), Theme(colour=False)) == Action("back")
