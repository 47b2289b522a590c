"""Before and after, and the scorecard: what changed, and what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence

from lawf_repl.beats import Compared
from lawf_repl.records import Check, Scorecard
from lawf_repl.report.markup import Html, joined, own, tag
from lawf_repl.report.tokens import Numbers, changed
from lawf_repl.ui.compare import changed_positions, scorecard_rows


def comparison(beat: Compared, numbers: Numbers) -> Html:
    """The same prompt before and after: what changed stands between minus signs, and between plus signs."""
    rerun, tips = beat.rerun, numbers if beat.whole else None
    left, right = changed_positions(rerun.before, rerun.after)
    sides = [tag("div", tag("h4", title), changed(answer.tokens, marked, name, sign, tips), class_=f"side {name}")
             for title, answer, marked, name, sign in (("− before, adapter off", rerun.before, left, "del", "−"),
                                                       ("+ after, adapter on", rerun.after, right, "ins", "+"))]
    result = "✓ gives the accepted answer" if rerun.fixed else "✗ does not give the accepted answer: "
    return joined(
        tag("p", own(rerun.prompt), class_="said"), tag("div", *sides, class_="sides"),
        tag("p", tag("b", result, class_="good" if rerun.fixed else "bad"), None if rerun.fixed else own(rerun.accepted)),
        None if rerun.before_matches else tag("p", "the answer before training was not the stored one, token for token", class_="bad"),
        None if beat.whole else tag("p", "compared word by word: the file does not have both answers as tokens", class_="quiet small"))


def scorecard(card: Scorecard, cases: int) -> Html:
    """Every figure with the number of things that it was measured on, and every check."""
    head = tag("tr", *(tag("th", title, scope="col") for title in ("check", "result", "n", "means")))
    rows = [tag("tr", tag("th", row.name, scope="row"),
                tag("td", "not measured" if row.figure is None else f"{'✓ ' if row.held else '✗ '}{row.figure}" if row.judged else row.figure,
                    class_="quiet" if row.figure is None else "good" if row.held else "bad"),
                tag("td", str(row.count) if row.figure else "0"), tag("td", row.meaning, class_="quiet")) for row in scorecard_rows(card, cases)]
    return joined(tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="card"), class_="scroll", tabindex=0),
                  _checks("paraphrases", card.paraphrases), _checks("neighbours", card.neighbours))


def _checks(name: str, checks: Sequence[Check]) -> Html | None:
    """What failed, and behind it, folded, everything."""
    if not checks:
        return None
    wrong = [check for check in checks if not check.ok]
    shown = tag("ul", *(_check(check) for check in wrong), class_="checks") if wrong else None
    right = [check for check in checks if check.ok]
    summary = tag("summary", f"{len(right)} of {len(checks)} {name} as they should be")
    folded = tag("details", summary, tag("ul", *(_check(check) for check in right), class_="checks")) if right else None
    return joined(tag("p", tag("b", f"{len(wrong)} of {len(checks)} {name} not as they should be", class_="bad")) if wrong else None, shown, folded)


def _check(check: Check) -> Html:
    if check.ok:
        return tag("li", tag("span", "✓ ", class_="good"), own(check.prompt), tag("div", own(check.got), class_="quiet"))
    sides = [tag("div", tag("b", sign, class_="quiet"), own(given)) for sign, given in (("− expected ", check.expected), ("+ got ", check.got))]
    return tag("li", tag("span", "✗ ", class_="bad"), own(check.prompt), *sides)
