"""Before and after: what changed token by token, the scorecard, and one sentence that says what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lawf_repl.records import Check, Completion, Rerun, Scorecard, StopReason
from lawf_repl.ui.layout import groups, piece, visible
from lawf_repl.ui.render import shorten
from lawf_repl.ui.theme import Theme

SIDE_BY_SIDE = 100  # cells from which two columns are easier to read than one above the other
WIDEST = 160        # longer lines are hard to read
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one side that both sides have, or that only this side has."""

    text: str
    changed: bool


def token_diff(before: Completion, after: Completion) -> tuple[list[Run], list[Run]]:
    """What both completions share and what not, compared by token ids; tokens of one character stay together."""
    left, right = _units(before), _units(after)
    sides: tuple[list[Run], list[Run]] = ([], [])
    matcher = SequenceMatcher(None, [unit[0] for unit in left], [unit[0] for unit in right], autojunk=False)
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        for side, units in ((sides[0], left[start:end]), (sides[1], right[other_start:other_end])):
            if units:
                side.append(Run("".join(unit[1] for unit in units), tag != "equal"))
    return sides


def changed_positions(before: Completion, after: Completion) -> tuple[frozenset[int], frozenset[int]]:
    """The positions of what only one side has, each the last of its character's tokens."""
    ends = [sorted({last for _, last in groups(side.tokens)}) for side in (before, after)]
    matcher = SequenceMatcher(None, [unit[0] for unit in _units(before)], [unit[0] for unit in _units(after)], autojunk=False)
    changed = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return (frozenset(last for _, start, end, _, _ in changed for last in ends[0][start:end]),
            frozenset(last for _, _, _, start, end in changed for last in ends[1][start:end]))


def _units(completion: Completion) -> list[tuple[tuple[int, ...], str]]:
    spans = groups(completion.tokens)
    return [(completion.ids[span[0]:index + 1], piece(completion.tokens[index])) for index, span in enumerate(spans) if span[1] == index]


def _side(runs: Sequence[Run], theme: Theme, look: str, opening: str, closing: str) -> Text:
    text = Text(overflow="fold")
    for run in runs:
        if not run.changed:
            text.append(run.text)
            continue
        core = run.text.strip(" ")
        gap = len(run.text) - len(run.text.lstrip(" ")) if core else 0
        text.append(run.text[:gap])
        text.append(opening, theme.rich("quiet"))
        text.append(core or run.text.replace(" ", "·"), theme.rich(look))
        text.append(closing, theme.rich("quiet"))
        text.append(run.text[gap + len(core):] if core else "")
    return text


@dataclass(frozen=True)
class Comparison:
    """Before and after of one prompt: side by side from SIDE_BY_SIDE cells on, else one above the other."""

    rerun: Rerun
    theme: Theme

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, after = token_diff(self.rerun.before, self.rerun.after)
        theme = self.theme
        left, right = _side(before, theme, "before", "[-", "-]"), _side(after, theme, "after", "{+", "+}")
        yield Text("› ", theme.rich("accent")).append(visible(self.rerun.prompt, newlines=True), theme.rich("title"))
        titles = (Text("before (adapter off)", theme.rich("quiet")), Text("after (adapter on)", theme.rich("quiet")))
        width = min(options.max_width, WIDEST)
        if width >= SIDE_BY_SIDE:
            table = Table(box=None if theme.plain else box.ROUNDED, border_style=theme.rich("border"), padding=(0, 1),
                          width=width)
            table.add_column(titles[0], ratio=1, overflow="fold")
            table.add_column(titles[1], ratio=1, overflow="fold")
            table.add_row(left, right)
            yield table
        else:
            grid = Table.grid(padding=(0, 1), expand=True)
            grid.add_column(no_wrap=True)
            grid.add_column(ratio=1, overflow="fold")
            grid.add_row(Text("-", theme.rich("bad")), titles[0])
            grid.add_row("", left)
            grid.add_row(Text("+", theme.rich("good")), titles[1])
            grid.add_row("", right)
            yield grid
        if not self.rerun.before_matches:
            yield Text("the answer before training was not the stored one, token for token", theme.rich("bad"))


def comparison(rerun: Rerun, theme: Theme) -> RenderableType:
    """The same prompt before and after training."""
    return Comparison(rerun, theme)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of a scorecard; None where it was not measured. `judged`: there is a right and a wrong of it."""

    name: str
    figure: str | None
    count: int
    meaning: str
    held: bool
    judged: bool = True


def scorecard_rows(card: Scorecard, cases: int) -> list[Figure]:
    """Every figure of a scorecard with the number of things it was measured on."""
    good = None if card.reliability is None else round(card.reliability * cases)
    probes, probed = card.probes, card.probes.n if card.probes else 0
    rows = [
        Figure("reliability", None if good is None else f"{good} of {cases}", cases, "trained prompts now right", good == cases),
        Figure("generality", _held(card.paraphrases), len(card.paraphrases), "paraphrases now right", _all_ok(card.paraphrases)),
        Figure("locality", _held(card.neighbours), len(card.neighbours), "neighbours answered as before", _all_ok(card.neighbours)),
        Figure("drift", None if probes is None else f"{probes.drift_nats:.2g} nats", probed, "KL per token on unrelated prompts", True, False),
        Figure("flips", None if probes is None else f"{probes.flips:.1%}", probed, "unrelated prompts answered otherwise",
               probes is None or probes.flips == 0),
    ]
    if probes is not None and probes.near_ties:
        rows.append(Figure("near-ties", f"{probes.near_ties:.1%}", probes.n, "flips where the base itself was undecided", True, False))
    return rows


def scorecard_table(card: Scorecard, cases: int, theme: Theme) -> RenderableType:
    """Every figure of a scorecard with the number of things it was measured on, and the checks that did not hold."""
    table = Table(box=None if theme.plain else box.SIMPLE_HEAD, border_style=theme.rich("border"), header_style=theme.rich("quiet"),
                  show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify in (("check", "left"), ("result", "right"), ("n", "right"), ("means", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for row in scorecard_rows(card, cases):
        look = "quiet" if row.figure is None else "good" if row.held else "bad"
        table.add_row(Text(row.name), Text(row.figure or NOT_MEASURED, theme.rich(look)), Text(str(row.count) if row.figure else "0"),
                      Text(row.meaning, theme.rich("quiet")))
    failures = [_failure(kind, check, theme) for kind, checks in (("paraphrase", card.paraphrases), ("neighbour", card.neighbours))
                for check in checks if not check.ok]
    return Group(table, *([Text("")] if failures else []), *failures)


def _held(checks: Sequence[Check]) -> str | None:
    return f"{sum(check.ok for check in checks)} of {len(checks)}" if checks else None


def _all_ok(checks: Sequence[Check]) -> bool:
    return all(check.ok for check in checks)


def _failure(kind: str, check: Check, theme: Theme) -> Text:
    text = Text(f"{kind} ", theme.rich("bad"), overflow="fold")
    text.append(shorten(visible(check.prompt), 60), theme.rich("title"))
    for mark, given in (("- expected ", check.expected), ("+ got      ", check.got)):
        text.append(f"\n  {mark}{shorten(visible(given), 60)}", theme.rich("quiet"))
    return text


def sentence(card: Scorecard, reruns: Sequence[Rerun], *, advice: bool = True, weak: bool = False,
             reason: StopReason | None = None) -> str:
    """In plain words: fixed or not, what else changed and, with `advice`, which command of the REPL comes next.

    `weak`: some correction was a weak preference, whose token need not win. `reason`: why training stopped.
    """
    wrong = [rerun for rerun in reruns if not rerun.fixed]
    if not reruns:
        return "Nothing was trained yet: correct an answer, accept it, then /train."
    if wrong and weak:
        found = "Preferred, not fixed: a correction with a confidence below 1 does not decide what the model says first"
        then = "keep it with /save NAME, or /undo, /confidence 1 and correct again"
    elif wrong:
        which = "the prompt does" if len(reruns) == 1 else f"{len(wrong)} of {len(reruns)} prompts {'does' if len(wrong) == 1 else 'do'}"
        nexts: dict[StopReason | None, str] = {
            "plateau": "the adapter reaches no further: /set rank 32 or /set layers all, and /train again",
            "max_steps": "/set max_steps higher and /train again", "max_seconds": "/set max_seconds higher and /train again",
            "interrupted": "/train begins again and may go on to its end"}
        found, then = f"Not fixed: {which} not give the accepted answer yet", nexts.get(reason, "correct more with /edit, and /train again")
    else:
        many = f"all {len(reruns)} prompts now give their accepted answers by themselves"
        effect, then = _side_effects(card)
        found = f"Fixed: {'the prompt now gives the accepted answer by itself' if len(reruns) == 1 else many}; {effect}"
    return f"{found}: {then}." if advice else f"{found}."


def _side_effects(card: Scorecard) -> tuple[str, str]:
    """(what else changed, what to do)."""
    changed = [check for check in card.neighbours if not check.ok]
    missed = [check for check in card.paraphrases if not check.ok]
    flips = 0 if card.probes is None else round(card.probes.flips * card.probes.n)
    if not card.neighbours and card.probes is None:
        return "what else changed was not measured", "add /neighbour PROMPT and /compare, or keep it with /save NAME"
    if changed or flips:
        parts = [f"{len(changed)} of {len(card.neighbours)} neighbours"] if changed else []
        if card.probes is not None and flips:
            parts.append(f"{flips} of {card.probes.n} probes")
        return f"but {' and '.join(parts)} changed too", "keep it with /save NAME or drop it with /adapter reset"
    if missed:
        are = "is" if len(missed) == 1 else "are"
        return f"nothing else changed, but {len(missed)} of {len(card.paraphrases)} paraphrases {are} still wrong", "correct one too, or /save NAME"
    return "nothing else that was measured changed", "keep it with /save NAME, serve it with /export"
