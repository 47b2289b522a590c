"""One session as an article: what came of it, its story beat by beat, and how to load its adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lawf_repl.beats import (
    Accepted,
    Answered,
    Asked,
    Beat,
    Compared,
    Corrected,
    Exported,
    Kept,
    Listed,
    Lost,
    Measured,
    Moved,
    Noted,
    Trained,
)
from lawf_repl.chronicle import Chronicle
from lawf_repl.records import Anchor, Message, Node
from lawf_repl.report.curves import charts
from lawf_repl.report.loading import loading
from lawf_repl.report.markup import Html, joined, own, tag
from lawf_repl.report.measures import comparison, scorecard
from lawf_repl.report.tokens import Numbers, answer
from lawf_repl.ui.chronicle import LISTS, facts, verdict
from lawf_repl.ui.layout import token_label
from lawf_repl.ui.render import STOP_REASONS, percent
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.tree import correction_text, reuse_text

STATES = {True: ("fixed", "✓ fixed"), False: ("broken", "✗ not fixed"), None: ("open", "? not compared")}
PLAIN = Theme(colour=False, plain=True)


def article(chronicle: Chronicle, anchor: str, numbers: Numbers, heading: str = "h2") -> Html:
    """The whole session; `anchor` is its id in the page, `heading` the element of its name."""
    name, label = STATES[chronicle.digest.fixed]
    teller = Teller(numbers)
    beats = [teller.item(beat) for beat in chronicle.beats]
    asked = next((beat.messages for beat in chronicle.beats if isinstance(beat, Asked)), ())
    return tag("article",
               tag("header", tag(heading, own(chronicle.digest.name), " ", tag("span", label, class_=f"state {name}")),
                   tag("p", verdict(chronicle), class_="verdict"),
                   tag("p", *_separated([own(fact) for fact in facts(chronicle)]), class_="quiet small")),
               _troubles(chronicle),
               tag("ol", *beats, class_="story"),
               tag("section", tag("h3", "Loading the adapter"), loading(chronicle, asked), class_="loading"),
               id=anchor)


def _separated(parts: Sequence[Html]) -> list[Html]:
    return [joined(" · " if index else None, part) for index, part in enumerate(parts)]


def _troubles(chronicle: Chronicle) -> Html | None:
    if not chronicle.troubles:
        return None
    return tag("div", tag("p", tag("b", "! This file is damaged; what could be read of it is told.")),
               tag("ul", *(tag("li", str(found)) for found in chronicle.troubles)), class_="troubles", role="note")


class Teller:
    """Beats in, list items out."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def item(self, beat: Beat) -> Html:
        """One beat, whatever kind it is, with the name of what happened."""
        tell: dict[type[Beat], tuple[str, Callable[[Any], Html]]] = {
            Asked: ("asked", self.asked), Answered: ("answered", self.answered), Corrected: ("corrected", self.corrected),
            Moved: ("went to", self.moved), Accepted: ("accepted", self.accepted), Listed: ("named", self.listed), Noted: ("note", self.noted),
            Trained: ("trained", self.trained), Compared: ("compared", self.compared), Measured: ("measured", self.measured),
            Kept: ("saved", self.kept), Exported: ("exported", self.exported), Lost: ("lost", self.lost),
        }
        name, part = tell[type(beat)]
        return tag("li", tag("div", name, class_="what"), tag("div", part(beat), class_="beat"), class_=type(beat).__name__.lower())

    def asked(self, beat: Asked) -> Html:
        turn = tag("p", f"turn {beat.turn} of the conversation", class_="quiet small") if beat.turn > 1 and len(beat.messages) == 1 else None
        return joined(turn, *(self.message(message, message is beat.messages[-1]) for message in beat.messages))

    def message(self, message: Message, last: bool) -> Html:
        role = None if last and message["role"] == "user" else tag("div", message["role"], class_="quiet small")
        return tag("div", role, tag("div", message["content"], class_="said", dir="auto"), class_="prompt" if last else "earlier")

    def answer(self, node: Node) -> Html:
        ended = {"interrupted": "stopped by hand", "length": "stopped at the most tokens allowed"}.get(node.completion.finish)
        notes = [*(["with the adapter on"] * node.adapter_on), *([ended] if ended else [])]
        return joined(answer(node.completion.tokens, self.numbers, node.fix_positions),
                      tag("p", "; ".join(notes), class_="quiet small") if notes else None)

    def answered(self, beat: Answered) -> Html:
        return self.answer(beat.node)

    def corrected(self, beat: Corrected) -> Html:
        if beat.before is not None and beat.after is not None:
            where, _, act = correction_text(beat.before, beat.after, PLAIN).plain.partition("  ")
            cached = tag("span", f"  {reuse_text(beat.after.completion.timing)}", class_="quiet small")
            line = tag("p", tag("span", f"{where}: ", class_="quiet"), own(act), cached, class_="act")
        else:
            line = tag("p", f"at {beat.correction.position}, {beat.correction.kind.replace('_', ' ')}: ", own(beat.correction.text), class_="act")
        gone = tag("p", "the answer that came of it is not in the file", class_="bad") if beat.after is None else None
        return joined(line, gone, self.answer(beat.after) if beat.after else None)

    def moved(self, beat: Moved) -> Html:
        return tag("p", f"answer {beat.node}", *([": ", own(beat.text)] if beat.text is not None else []), class_="quiet")

    def accepted(self, beat: Accepted) -> Html:
        count = f"{len(beat.anchors)} anchor{'' if len(beat.anchors) == 1 else 's'}: the tokens that training changes"
        return joined(tag("p", count), anchors_table(beat.anchors))

    def listed(self, beat: Listed) -> Html:
        prompts = [tag("li", prompt, dir="auto") for prompt in beat.prompts]
        return joined(tag("p", LISTS.get(beat.what, beat.what)), tag("ul", *prompts, class_="prompts"))

    def noted(self, beat: Noted) -> Html:
        return tag("p", own(beat.text), class_="quiet")

    def trained(self, beat: Trained) -> Html:
        result, count = beat.result, len(beat.result.anchor_p)
        line = (f"{result.steps} steps in {result.seconds:.1f} s on {count} anchor{'' if count == 1 else 's'} of {beat.prompts} "
                f"prompt{'' if beat.prompts == 1 else 's'}; {STOP_REASONS[result.stop_reason]}; loss {result.loss:.2g}")
        shrunk = f"; adapter shrunk to {result.scale:.0%}" if result.scale < 1 else ""
        missed = [beat.anchors[index] for index in result.unreachable if 0 <= index < len(beat.anchors)]
        recipe = ", ".join(f"{key} {value}" for key, value in beat.recipe.items())
        return joined(tag("p", f"{line}{shrunk}."), charts(beat),
                      *(tag("p", "cannot be reached: ", own(token_label(one.chosen)), f" at {one.position}", class_="bad") for one in missed),
                      tag("p", recipe, class_="quiet small") if recipe else None)

    def compared(self, beat: Compared) -> Html:
        return comparison(beat, self.numbers)

    def measured(self, beat: Measured) -> Html:
        return scorecard(beat.card, len(beat.reruns))

    def kept(self, beat: Kept) -> Html:
        gone = None if beat.folder else tag("p", "no folder with this content is there any more", class_="bad")
        return joined(tag("p", "began with the adapter " if beat.loaded else "adapter ", own(beat.path), " ",
                          tag("code", beat.sha256[:16] + "…", class_="hash"), class_="quiet"), gone)

    def exported(self, beat: Exported) -> Html:
        word = tag("b", "PASS" if beat.passed else "FAIL", class_="good" if beat.passed else "bad")
        return tag("p", "as ", own(beat.format), " to ", own(beat.path), ": ", word)

    def lost(self, beat: Lost) -> Html:
        return tag("p", f"! line {beat.line}: ", own(beat.text), class_="bad")


def anchors_table(anchors: Sequence[Anchor]) -> Html:
    """Where, what instead of what, how strong, and what the base gave the wanted token."""
    if not anchors:
        return tag("p", "none: the base already answers like this", class_="quiet")
    head = tag("tr", *(tag("th", title, scope="col") for title in ("at", "base says", "wanted", "base p", "confidence")))
    rows = [tag("tr", tag("td", str(one.position)), tag("td", own(token_label(one.rejected)), class_="before"),
                tag("td", own(token_label(one.chosen)), class_="after"), tag("td", percent(one.p_ref).strip()), tag("td", f"{one.confidence:.2g}"))
            for one in anchors]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="anchors"), class_="scroll", tabindex=0)


