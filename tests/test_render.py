"""Renders: fixed records against golden text, and arbitrary text that must never reach a terminal raw."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console, Group, RenderableType

from lawf_repl.records import (
    Alternative,
    Anchor,
    Case,
    Check,
    Completion,
    Correction,
    Node,
    ProbeResult,
    Rerun,
    Scorecard,
    Token,
    TrainingResult,
    TrainStep,
)
from lawf_repl.ui.compare import comparison, scorecard_table, sentence, token_diff
from lawf_repl.ui.layout import groups, piece, pill, token_label, visible, wrap
from lawf_repl.ui.render import (
    alternative_rows,
    alternatives_table,
    anchors_table,
    answer_view,
    bar,
    percent,
    shorten,
    sparkline,
    time_left,
    tokens_table,
    training_panel,
)
from lawf_repl.ui.theme import COLOURS, Theme, probability_look, theme_for
from lawf_repl.ui.tree import cases_view, correction_text, tree_view

GOLDEN = Path(__file__).parent / "golden"
COLOUR, BARE = Theme(), Theme(colour=False, plain=True)
NASTY = "\x00\x07\x1b\x7f\x9b\u061c\u200b\u200d\u200e\u200f\u202a\u202e\u2066\u2069\ufeff\u00ad\u2028\ufe0f\U000e0041\ud800\u3164"
TEXTS = st.one_of(st.text(max_size=12), st.text(alphabet=NASTY + "a豆 \n\t\r[/]", max_size=12),
                  st.sampled_from(["\x1b[31mred\x1b[0m", "[bold]x[/bold]", "[link=http://x]y[/]", "\x1b]0;title\x07", "a\u202eb",
                                   ":smile:"]))
TOKENS = st.lists(st.builds(Token, st.integers(0, 9), TEXTS, st.floats(0, 1), st.integers(0, 50000), st.floats(0, 12),
                            st.lists(st.builds(Alternative, st.integers(0, 9), TEXTS, st.floats(0, 1)), max_size=3).map(tuple),
                            special=st.booleans()), max_size=12)


def rendered(renderable: RenderableType, width: int, *, colour: bool = False) -> str:
    """What a terminal of this width would get."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system="truecolor" if colour else None, force_terminal=colour, highlight=False,
                      markup=True, emoji=True, legacy_windows=False)
    console.print(renderable)
    return file.getvalue()


def token(text: str, p: float = 0.97, *, id_: int = 7, special: bool = False, others: tuple[tuple[str, float], ...] = (),
          partial: bool = False) -> Token:
    alternatives = tuple(Alternative(id_ if other == text else 50 + number, other, q) for number, (other, q) in enumerate(others))
    return Token(id_, text, p, 0 if p >= 0.4 else 1, 1.25, alternatives, special, partial)


def to_bytes(id_: int) -> bytes:
    """The three tokens of 豆 in BEFORE."""
    return "豆".encode()[id_ - 11:id_ - 10]


BEFORE = Completion((1,), (token("The", id_=1), token(" capital", id_=2), token(" is", 0.7, id_=3),
                           token(" Sydney", 0.41, id_=4, others=((" Sydney", 0.41), (" Canberra", 0.33))), token(".", id_=5), token("\n",
                                                                                                                                    id_=6),
                           token("", id_=11, partial=True), token("", id_=12, partial=True), token("豆", 0.1, id_=13), token("包", 0.9, id_=14),
                           token("<|im_end|>", 0.99, id_=0, special=True)), "eos")
AFTER = Completion((1,), (*BEFORE.tokens[:3], token(" Canberra", 0.98, id_=8), *BEFORE.tokens[4:6], token("好", id_=15), BEFORE.tokens[-1]),
                   "eos")
ANCHORS = (Anchor(3, 4, 8, " Sydney", " Canberra", 1.0, 0.33), Anchor(6, 11, 15, "豆", "好", 0.8, 0.0004))
STEPS = [TrainStep(n, 3 / n, (min(0.96, n / 20), min(0.5, n / 40)), 0.00002 * n, n * 0.07, n > 15) for n in range(1, 25)]
RESULT = TrainingResult(24, 1.68, "plateau", 0.125, (0.96, 0.5), 0.5, (1,))
RERUN = Rerun("What is the capital?", BEFORE, AFTER.text, AFTER, True)
CHECKS = (Check("Capital?", "Canberra.", "Canberra."), Check("Which city?", "Canberra.", "Sydney."))
CARD = Scorecard(1.0, CHECKS, (), ProbeResult(200, 0.00012, 0.01, 0.02))


TREE = (Node(0, None, BEFORE), Node(1, 0, AFTER, Correction("replace", 3, " Canberra", (8,), (4, 5))),
        Node(2, 1, AFTER, training=RESULT), Node(3, 0, AFTER, Correction("end", 4, "", (0,), (5,))),
        Node(4, 3, AFTER, Correction("delete", 2, "", (8,), (3,))), Node(5, None, BEFORE))


def everything(theme: Theme, width: int) -> Group:
    """All renders of the fixed records."""
    first = [TrainStep(1, 2.0, (0.1, 0.2), None, 0.1, False)]
    sydney = BEFORE.tokens[3]
    return Group(answer_view(BEFORE.tokens, theme, width, fixed=frozenset({3})), "\n",
                 alternatives_table(sydney, sydney.alternatives, theme), "", tokens_table(BEFORE.tokens, theme, to_bytes), "",
                 anchors_table(ANCHORS, theme), "", training_panel(ANCHORS, STEPS, RESULT, theme, width=width), "",
                 training_panel(ANCHORS, first, None, theme, target_p=0.95, width=width), "", comparison(RERUN, theme), "",
                 scorecard_table(CARD, 1, theme), "", scorecard_table(Scorecard(), 1, theme), "", sentence(CARD, [RERUN]), "",
                 tree_view(TREE, 3, lambda node: "What is the capital of Australia?", theme, width), "",
                 cases_view([Case("What is the capital?", (1,), (1, 2), ANCHORS, AFTER.text)], theme, width))


@pytest.mark.parametrize("width", [60, 100, 160])
def test_golden(width: int) -> None:
    found = "\n".join(line.rstrip() for line in rendered(everything(Theme(colour=False), width), width).splitlines()) + "\n"
    assert found == (GOLDEN / f"{width}.txt").read_text(encoding="utf-8")
    assert all(cell_len(line) <= width for line in found.splitlines())


def unsafe(text: str) -> list[str]:
    """Characters that no terminal may get: all controls but newline, all format characters, surrogates, separators."""
    return [character for character in text if character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(st.one_of(TEXTS, st.text(alphabet=st.characters(), max_size=20)))
def test_visible_hides_nothing_and_obeys_nothing(text: str) -> None:
    assert not unsafe(visible(text)) and "\n" not in visible(text)
    assert not unsafe(visible(text, newlines=True))
    assert not unsafe(token_label(text)) and not unsafe(pill(text)) and cell_len(token_label(text)) > 0
    assert visible(visible(text)) == visible(text)


@settings(max_examples=60, deadline=None)
@given(TOKENS, TEXTS, st.sampled_from([20, 60, 100, 130]))
def test_no_render_lets_untrusted_text_through(tokens: list[Token], text: str, width: int) -> None:
    completion = Completion((1,), tuple(tokens), "eos")
    anchors = [Anchor(number, 1, 2, item.text, text, 1.0, item.p) for number, item in enumerate(tokens)]
    steps = [TrainStep(1, 1.0, tuple(item.p for item in tokens), None, 0.1, False)]
    result = TrainingResult(1, 0.1, "plateau", 1.0, tuple(item.p for item in tokens), 1.0, (0,))
    rerun = Rerun(text, completion, text, Completion((1,), tuple(reversed(tokens)), "eos"), False)
    checks = (Check(text, text, "x" + text),)
    views: list[RenderableType] = [answer_view(tokens, COLOUR, width), tokens_table(tokens, COLOUR, to_bytes), anchors_table(anchors, COLOUR),
                                   training_panel(anchors, steps, result, COLOUR, width=width), comparison(rerun, COLOUR),
                                   scorecard_table(Scorecard(0.0, checks, checks, None), 1, COLOUR), sentence(Scorecard(), [rerun])]
    tree = [Node(0, None, completion), Node(1, 0, completion, Correction("replace", 0, text, tuple(item.id for item in tokens), ()))]
    views += [tree_view(tree, 1, lambda node: text, COLOUR, width), cases_view([Case(text, (1,), (2,), tuple(anchors), text)], COLOUR, width)]
    views += [alternatives_table(item, item.alternatives, COLOUR) for item in tokens[:2]]
    for theme_colour in (True, False):
        shown = rendered(Group(*views), width, colour=theme_colour)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", shown) if theme_colour else shown
        assert not unsafe(shown)


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "[link=http://a]b[/link]", ":smile:", "\\[red]"])
def test_markup_is_text(text: str) -> None:
    for view in (answer_view([token(text)], COLOUR, 80), tokens_table([token(text)], COLOUR, to_bytes),
                 anchors_table([Anchor(0, 1, 2, text, text, 1, 0.1)], COLOUR), comparison(Rerun(text, BEFORE, "", AFTER, True), COLOUR)):
        assert text in re.sub(r"\x1b\[[0-9;]*m", "", rendered(view, 80, colour=True))


def test_parts_of_characters_are_shown_by_their_bytes_and_characters_whole() -> None:
    shown = rendered(tokens_table(BEFORE.tokens, BARE, to_bytes), 100)
    assert [word for word in shown.split() if word.startswith("0x")] == ["0xe8", "0xb1", "0x86"] and "豆" not in shown
    other = (token("", id_=11, partial=True), token("", id_=22, partial=True), token("虎", id_=23))
    after = Completion((1,), (*BEFORE.tokens[:6], *other, *BEFORE.tokens[9:]), "eos")
    fix = Node(1, 0, after, Correction("replace", 7, "虎", (22, 23), BEFORE.ids[7:]))  # the first byte is the same
    assert correction_text(Node(0, None, BEFORE), fix, BARE).plain == "at 7  豆包 → 虎"
    picked = Node(1, 0, after, Correction("replace", 7, "0x99", (22,), BEFORE.ids[7:]))
    assert correction_text(Node(0, None, BEFORE), picked, BARE).plain == "at 7  豆包 → 虎"
    rows = alternative_rows(BEFORE.tokens[7], (Alternative(22, "0x99", 0.2),), "0xb1")
    assert [row.label for row in rows] == ["0x99", "0xb1", "all others"]


@given(TOKENS, st.integers(4, 50))
def test_wrap_keeps_every_token_in_order_and_within_the_width(tokens: list[Token], width: int) -> None:
    lines = wrap(tokens, width)
    assert all(sum(cell_len(chunk.text) for chunk in line) <= width for line in lines)
    shown = [chunk.position for line in lines for chunk in line]
    assert shown == sorted(shown)
    assert set(shown) == {last for _, last in groups(tokens)}
    whole = "".join(piece(tokens[last]) for last in sorted({last for _, last in groups(tokens)}))
    assert "".join(chunk.text for line in lines for chunk in line).replace(" ", "") == whole.replace(" ", "").replace("\n", "")


def test_wrap_breaks_at_words_not_inside_them_and_not_before_punctuation() -> None:
    words = [token("The"), token(" quick"), token(" Can"), token("berra"), token(" fox")]
    assert ["".join(chunk.text for chunk in line) for line in wrap(words, 12)] == ["The quick ", "Canberra fox"]
    assert ["".join(chunk.text for chunk in line) for line in wrap([token("我是豆包，你好")], 8)] == ["我是豆", "包，你好"]


def test_tokens_of_one_character_are_one_group() -> None:
    tokens = [token("a"), token("", partial=True), token("", partial=True), token("豆"), token("b"), token("")]
    assert groups(tokens) == [(0, 0), (1, 3), (1, 3), (1, 3), (4, 4), (5, 5)]
    assert "".join(chunk.text for chunk in wrap(tokens, 40)[0]) == "a豆b∅"
    assert groups([token(""), token("<|end|>", special=True), token("x")]) == [(0, 0), (1, 1), (2, 2)]


def test_labels() -> None:
    assert (token_label(" a b"), token_label("\n"), token_label("\t"), token_label(""), token_label("\u00a0")) == ("·a·b", "↵", "⇥", "∅",
                                                                                                                   "\\u00a0")
    assert pill("<|im_end|>") == "⟨im_end⟩" and pill("</s>") == "⟨/s⟩"
    assert visible("❤\ufe0f") == "❤" and visible("\ufe0f") == "\\ufe0f"


@given(st.floats(0, 1))
def test_figures_keep_their_width_and_never_claim_certainty(p: float) -> None:
    assert len(percent(p)) == 5 and len(bar(p, 12)) == 12
    assert (percent(p) == " 100%") == (p >= 1) and (p == 0 or percent(p) != " 0.0%")
    assert probability_look(p) in ("unsure", "doubtful") if p < 0.5 else probability_look(p) in ("open", "likely", "sure")


@given(st.lists(st.floats(0, 1e6), max_size=200), st.integers(1, 40))
def test_sparkline_fits(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


@given(st.text(max_size=20), st.integers(1, 20))
def test_shorten_fits(text: str, cells: int) -> None:
    assert cell_len(shorten(visible(text), cells)) <= cells


def test_alternatives_hold_the_standing_token_and_all_mass() -> None:
    item = Token(9, " far", 0.02, 40, 2.0, (Alternative(1, " a", 0.5), Alternative(2, " b", 0.25)))
    rows = alternative_rows(item, item.alternatives)
    assert [row.rank for row in rows] == [0, 1, 40, None] and [row.current for row in rows] == [False, False, True, False]
    assert sum(row.p for row in rows) == pytest.approx(1.0)


def test_diff_marks_only_what_changed() -> None:
    before, after = token_diff(BEFORE, AFTER)
    assert [run.text for run in before if run.changed] == [" Sydney", "豆包"]
    assert [run.text for run in after if run.changed] == [" Canberra", "好"]
    assert token_diff(BEFORE, BEFORE)[0] == token_diff(BEFORE, BEFORE)[1] and not any(run.changed for run in token_diff(BEFORE, BEFORE)[0])


def test_columns_from_100_on() -> None:
    assert "│" in rendered(comparison(RERUN, COLOUR), 100) and "│" not in rendered(comparison(RERUN, COLOUR), 99)
    for width in (60, 100):
        shown = rendered(comparison(RERUN, COLOUR), width)
        assert "[-Sydney-]" in shown and "{+Canberra+}" in shown


def test_sentence_says_fixed_only_if_fixed() -> None:
    broken = Rerun("q", BEFORE, "other", AFTER, True)
    assert sentence(CARD, [RERUN]).startswith("Fixed") and sentence(CARD, [RERUN, broken]).startswith("Not fixed: 1 of 2")
    assert "Not fixed: 1 of 2 prompts does not give" in sentence(CARD, [RERUN, broken])
    assert "Not fixed: 2 of 2 prompts do not give" in sentence(CARD, [broken, broken])
    assert sentence(CARD, [RERUN, RERUN]).startswith("Fixed: all 2 prompts now give their accepted answers by themselves; ")
    assert "not measured" in sentence(Scorecard(1.0), [RERUN]) and "2 of 200 probes changed too" in sentence(CARD, [RERUN])
    assert "nothing else" in sentence(Scorecard(1.0, neighbours=(Check("a", "b", "b"),)), [RERUN])
    assert "/set rank" in sentence(CARD, [broken], reason="plateau") and "max_seconds" in sentence(CARD, [broken], reason="max_seconds")
    assert "/edit" in sentence(CARD, [broken], reason="converged") and "/set" not in sentence(CARD, [broken])


def test_what_was_not_measured_is_said() -> None:
    shown = rendered(scorecard_table(Scorecard(), 1, BARE), 100)
    assert shown.count("not measured") == 5
    assert "not measured" in rendered(training_panel(ANCHORS, [TrainStep(1, 1.0, (0.1, 0.2), None, 0.1, False)], None, BARE), 80)


def test_the_panel_says_why_it_stops_and_what_was_kept() -> None:
    def panel(fixed: bool, result: TrainingResult | None = None, elapsed: float | None = None) -> str:
        steps = [TrainStep(1, 1.0, (0.99, 0.99), None, 0.1, True), TrainStep(2, 2.0, (0.1, 0.1), None, 0.2, fixed)]
        return rendered(training_panel(ANCHORS, steps, result, BARE, target_p=0.95, elapsed=elapsed), 80)

    assert "until no other answer moves" in panel(True) and "until every anchor has 95.0% and the answer is right" in panel(False)
    assert "answer not right yet" in panel(False) and "0.2 s" in panel(False) and "7.5 s" in panel(False, elapsed=7.5)
    stopped = panel(False, TrainingResult(2, 0.2, "interrupted", 1.0, (0.99, 0.5), 1.0, (1,)))
    assert "answer right" in stopped, "the best so far is what is kept, and that was right"
    assert "not reached: 好 at 6" in stopped and "cannot" not in stopped, "who stops it has not shown that it cannot be reached"


def test_sixteen_colours_are_told_apart() -> None:
    theme = Theme(tone="dark").on("standard")
    looks = [theme.rich(name).color for name in ("likely", "open", "doubtful", "good", "special", "accent")]
    assert len({color.downgrade(ColorSystem.STANDARD).number for color in looks if color is not None}) == len(looks)
    assert Theme(colour=False).on("standard").rich("bad").color is None
    assert Theme(tone="dark").on("256") == Theme(tone="dark")
    for tone in COLOURS:
        shown = [Color.parse(COLOURS[tone][name]).downgrade(ColorSystem.EIGHT_BIT) for name in ("blue", "yellow", "orange", "red", "green")]
        assert len(set(shown)) == len(shown), "nor do 256 make two of them one"


def test_many_anchors_stay_calm() -> None:
    many = tuple(Anchor(n, n, n, "a", f"b{n}", 1.0, 0.1) for n in range(30))
    shown = rendered(training_panel(many, [TrainStep(1, 1.0, tuple(n / 30 for n in range(30)), None, 0.1, False)], None, COLOUR), 80)
    assert "and 22 more" in shown and len(shown.splitlines()) < 17


def test_themes_take_colour_and_then_everything_away() -> None:
    assert theme_for(False, {}) == Theme(True, False) and theme_for(False, {"NO_COLOR": "1"}) == Theme(False, False)
    assert theme_for(True, {}).plain and theme_for(False, {"TERM": "dumb"}).plain
    shown = rendered(answer_view(BEFORE.tokens, Theme(colour=False), 80), 80, colour=True)
    assert "\x1b[4m" in shown and not re.search(r"\x1b\[[0-9;]*[34]8;", shown), "unsure tokens are underlined where there is no colour"
    assert "\x1b" not in rendered(everything(BARE, 80), 80, colour=True)


def test_what_is_left_of_a_training_is_said_from_what_its_rounds_took() -> None:
    def step(number: int, seconds: float, round_: int, fixed: bool = True) -> TrainStep:
        return TrainStep(number, 1.0, (0.5,), None, seconds, fixed, round_)

    assert time_left([step(1, 1.0, 1, False)], 5, 120) == "round 1 of 5, at most 119 s more"
    assert time_left([step(1, 20.0, 1, False)], 1, 120) == "round 1 of 1, at most 100 s more"
    assert time_left([step(1, 2.0, 1)], 5, 120) == "round 1 of 5, at most 8 s more"
    steps = [step(1, 1.0, 1), step(2, 4.0, 2), step(3, 5.0, 2)]
    assert time_left(steps, 5, 120) == "round 2 of 5, at most 15 s more", "4 s a round, 1 s of this one gone"
    assert time_left(steps, 5, 10) == "round 2 of 5, at most 5 s more", "no longer than training may take"
    panel = rendered(training_panel(ANCHORS, steps, None, BARE, target_p=0.95, width=80, limits=(5, 120.0)), 80)
    assert "round 2 of 5" in panel and "round" not in rendered(training_panel(ANCHORS, steps, RESULT, BARE, width=80, limits=(5, 120.0)), 80)
