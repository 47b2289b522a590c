"""The page: sessions behind each other, a table of contents where there are several, and a policy under which nothing of it can run or load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from lawf_repl import __version__
from lawf_repl.chronicle import Chronicle
from lawf_repl.report.markup import Html, own, tag, trusted
from lawf_repl.report.session import STATES, article
from lawf_repl.report.tokens import Numbers, legend
from lawf_repl.ui.chronicle import time_text
from lawf_repl.ui.render import shorten


def page(chronicles: Sequence[Chronicle], failed: Sequence[tuple[str, str]] = ()) -> str:
    """The whole document. `failed` are sessions that could not be read, with the reason."""
    style = resources.files("lawf_repl.report").joinpath("style.css").read_text(encoding="utf-8")
    numbers = Numbers()
    anchors = [f"session-{number}" for number in range(1, len(chronicles) + 1)]
    several = len(chronicles) > 1
    title = f"{len(chronicles)} sessions" if several else chronicles[0].digest.name
    head = tag("head", trusted('<meta charset="utf-8">'), tag("meta", http_equiv="Content-Security-Policy", content=policy(style)),
               tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("meta", name="color-scheme", content="light dark"),
               tag("meta", name="referrer", content="no-referrer"), tag("title", f"{title} · lawf"), tag("style", trusted(style)))
    body = tag("body", tag("header", tag("p", "lawf report", class_="mark quiet"), tag("h1", title) if several else None, legend(), class_="top"),
               contents(chronicles, anchors) if several else None, _failed(failed),
               tag("main", *(article(one, anchor, numbers, "h2" if several else "h1") for one, anchor in zip(chronicles, anchors, strict=True))),
               tag("footer", f"Made by lawf {__version__} from session files. Probabilities are those of the untempered distribution.",
                   class_="quiet small"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy(style: str) -> str:
    """Nothing is loaded, nothing runs, and of styles only the one that is ours."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def contents(chronicles: Sequence[Chronicle], anchors: Sequence[str]) -> Html:
    """A row for each session that leads to it."""
    head = tag("tr", *(tag("th", title, scope="col") for title in ("session", "prompt", "result", "anchors", "drift", "n", "date")))
    rows = []
    for one, anchor in zip(chronicles, anchors, strict=True):
        row, (state, label) = one.digest, STATES[one.digest.fixed]
        rows.append(tag("tr", tag("td", tag("a", own(row.name), href=f"#{anchor}")), tag("td", own(shorten(row.prompt, 90)), class_="wide"),
                        tag("td", tag("span", label, class_=f"state {state}")), tag("td", str(row.anchors)),
                        tag("td", "" if row.drift is None else f"{row.drift:.1e}"), tag("td", str(row.probes) if row.drift is not None else ""),
                        tag("td", own(time_text(row.created)[:10]))))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="contents")
    return tag("nav", tag("div", table, class_="scroll", tabindex=0), aria_label="sessions")


def _failed(failed: Sequence[tuple[str, str]]) -> Html | None:
    if not failed:
        return None
    return tag("div", tag("p", tag("b", "! Not in this report:")), tag("ul", *(tag("li", own(name), ": ", own(reason)) for name, reason in failed)),
               class_="troubles", role="note")


