"""The story of a saved session as renderables, one for each thing that happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

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
from lawf_repl.digest import model_name
from lawf_repl.records import Node
from lawf_repl.ui.compare import comparison, scorecard_table, sentence
from lawf_repl.ui.layout import visible
from lawf_repl.ui.render import anchors_table, answer_view, least_sure, shorten, training_panel
from lawf_repl.ui.theme import Theme
from lawf_repl.ui.tree import correction_text, reuse_text

LONGEST = 20_000  # characters of one text
LISTS = {"paraphrase": "paraphrases, to be answered like it", "neighbour": "neighbours, whose answers must stay",
         "held": "held, so that the base's answers stay", "dropped": "taken out of the training"}


def story_view(chronicle: Chronicle, theme: Theme, width: int) -> Iterator[RenderableType]:
    """The whole story, part by part, laid out for `width` cells."""
    yield heading_view(chronicle, theme)
    teller = Teller(theme, width)
    for beat in chronicle.beats:
        yield Text("")
        yield teller.beat(beat)


def heading_view(chronicle: Chronicle, theme: Theme) -> RenderableType:
    """Which session it is, what came of it, and what is wrong with its file."""
    parts = [Text(visible(chronicle.digest.name), theme.rich("title"), overflow="fold"),
             Text(" · ".join(visible(fact) for fact in facts(chronicle)), theme.rich("quiet"), overflow="fold"),
             Text(verdict(chronicle), theme.rich("good" if chronicle.digest.fixed else "title"), overflow="fold")]
    for found in chronicle.troubles:
        parts.append(Text(f"! {visible(str(found))}", theme.rich("bad"), overflow="fold"))
    return Group(*parts)


def facts(chronicle: Chronicle) -> list[str]:
    """Model, date and software, as far as the file says them."""
    model, opening = chronicle.header["model"], chronicle.opening
    versions = opening.get("versions")
    found = [model_name(chronicle.header), *([f"revision {model['revision']}"] if model.get("revision") else []),
             *([str(model["dtype"])] if model.get("dtype") else []), *([f"on {opening['device']}"] if opening.get("device") else []),
             time_text(chronicle.header["created"]), f"lawf {chronicle.header['lawf_version']}"]
    return found + ([f"{name} {number}" for name, number in versions.items()] if isinstance(versions, dict) else [])


def time_text(text: str) -> str:
    """A time of the file as people read it, in UTC; as it stands where it is none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return text


def verdict(chronicle: Chronicle) -> str:
    """In a sentence, what the session came to."""
    training = chronicle.training
    if chronicle.reruns:
        weak = training is not None and any(anchor.confidence < 1 for anchor in training.anchors)
        return sentence(chronicle.card, chronicle.reruns, advice=False, weak=weak, reason=training.result.stop_reason if training else None)
    if training is not None:
        return "Trained, and not compared afterwards."
    accepted = chronicle.digest.cases
    return f"Not trained: {accepted} accepted answer{'' if accepted == 1 else 's'}." if accepted else "Nothing was accepted or trained."


def told(text: str, newlines: bool = False) -> str:
    """A text made safe to show; of a very long one the beginning, because laying out millions of characters takes minutes."""
    more = f" … and {len(text) - LONGEST} characters more, which --json has" if len(text) > LONGEST else ""
    return visible(text[:LONGEST], newlines=newlines) + more


class Teller:
    """Beats in, renderables out."""

    def __init__(self, theme: Theme, width: int) -> None:
        self.theme, self.width = theme, width

    def beat(self, beat: Beat) -> RenderableType:
        """One beat, whatever kind it is."""
        tell: dict[type[Beat], Callable[[Any], RenderableType]] = {
            Asked: self.asked, Answered: self.answered, Corrected: self.corrected, Moved: self.moved, Accepted: self.accepted, Listed: self.listed,
            Noted: self.noted, Trained: self.trained, Compared: self.compared, Measured: self.measured, Kept: self.kept, Exported: self.exported,
            Lost: self.lost,
        }
        return tell[type(beat)](beat)

    def quiet(self, text: str, behind: Text | None = None) -> RenderableType:
        """An indented line in the background, and what stands behind it on it."""
        line = Text(told(text), self.theme.rich("quiet"), overflow="fold")
        return indented(line if behind is None else line.append_text(behind))

    def asked(self, beat: Asked) -> RenderableType:
        parts: list[RenderableType] = [self.quiet(f"turn {beat.turn} of the conversation")] * (beat.turn > 1 and len(beat.messages) == 1)
        for message in beat.messages[:-1]:
            parts.append(self.quiet(f"{message['role']}: ", Text(told(message["content"], newlines=True))))
        last = beat.messages[-1]
        role = "" if last["role"] == "user" else f"{visible(last['role'])}: "
        mark = Text("› ", self.theme.rich("accent"), overflow="fold")
        return Group(*parts, mark.append(role + told(last["content"], newlines=True), self.theme.rich("title")))

    def answer(self, node: Node) -> RenderableType:
        tokens, ended = node.completion.tokens, {"interrupted": "stopped by hand", "length": "stopped at the most tokens allowed"}
        notes = [*([f"least sure: {least_sure(tokens)}"] if tokens else []), *(["with the adapter on"] * node.adapter_on),
                 *([ended[node.completion.finish]] if node.completion.finish in ended else [])]
        view = answer_view(tokens, self.theme, self.width, fixed=node.fix_positions) if tokens else Text("  ∅", self.theme.rich("quiet"))
        view.end = "\n"  # it is one of several parts here
        return Group(view, *(self.quiet(note) for note in notes))

    def answered(self, beat: Answered) -> RenderableType:
        return self.answer(beat.node)

    def corrected(self, beat: Corrected) -> RenderableType:
        line = Text(overflow="fold").append("✎ ", self.theme.rich("accent"))
        if beat.before is not None and beat.after is not None:
            line.append(correction_text(beat.before, beat.after, self.theme))
            line.append(f"   {reuse_text(beat.after.completion.timing)}", self.theme.rich("quiet"))
        else:
            line.append(f"at {beat.correction.position}  {beat.correction.kind.replace('_', ' ')}  ", self.theme.rich("quiet"))
            line.append(told(beat.correction.text), self.theme.rich("after"))
        answer = self.quiet("the answer that came of it is not in the file") if beat.after is None else self.answer(beat.after)
        return Group(indented(line), answer)

    def moved(self, beat: Moved) -> RenderableType:
        text = "" if beat.text is None else f": {shorten(visible(beat.text), max(self.width - 30, 20))}"
        return self.quiet(f"went to answer {beat.node}{text}")

    def accepted(self, beat: Accepted) -> RenderableType:
        count = f"{len(beat.anchors)} anchor{'' if len(beat.anchors) == 1 else 's'}"
        return Group(self.quiet(f"accepted, {count}"), anchors_table(beat.anchors, self.theme))

    def listed(self, beat: Listed) -> RenderableType:
        return Group(self.quiet(LISTS.get(beat.what, beat.what)), *(indented(Text(told(prompt), overflow="fold"), 4) for prompt in beat.prompts))

    def noted(self, beat: Noted) -> RenderableType:
        return self.quiet(beat.text)

    def trained(self, beat: Trained) -> RenderableType:
        return training_panel(beat.anchors, beat.steps, beat.result, self.theme, width=self.width)

    def compared(self, beat: Compared) -> RenderableType:
        words = [] if beat.whole else [self.quiet("compared word by word: the file does not have both answers as tokens")]
        return Group(comparison(beat.rerun, self.theme), *words)

    def measured(self, beat: Measured) -> RenderableType:
        return scorecard_table(beat.card, len(beat.reruns), self.theme)

    def kept(self, beat: Kept) -> RenderableType:
        was = "began with the adapter" if beat.loaded else "adapter saved:"
        line = self.quiet(f"{was} {beat.path}  (sha256 {beat.sha256[:12]}…)")
        gone = Text("no folder with this content is there any more", self.theme.rich("bad"), overflow="fold")
        return line if beat.folder is not None else Group(line, indented(gone))

    def exported(self, beat: Exported) -> RenderableType:
        result = Text("PASS" if beat.passed else "FAIL", self.theme.rich("good" if beat.passed else "bad"))
        return self.quiet(f"exported as {beat.format} to {beat.path}: ", result)

    def lost(self, beat: Lost) -> RenderableType:
        return indented(Text(f"! line {beat.line} is lost: {visible(beat.text)}", self.theme.rich("bad"), overflow="fold"))


def indented(part: RenderableType, by: int = 2) -> RenderableType:
    return Padding(part, (0, 0, 0, by), expand=False)


