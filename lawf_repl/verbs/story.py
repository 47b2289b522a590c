"""The printed story of a correction that runs without a hand: question, answer, corrections, training, before and after."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lawf_repl.config import Settings
from lawf_repl.records import Anchor, Completion, Node, Rerun, Scorecard, TrainingResult, TrainStep
from lawf_repl.ui.compare import comparison, scorecard_table, sentence
from lawf_repl.ui.layout import token_label, visible
from lawf_repl.ui.render import anchors_table, answer_view, least_sure, training_panel
from lawf_repl.ui.theme import Theme, theme_for
from lawf_repl.ui.tree import reuse_text
from lawf_repl.verbs.inputs import is_terminal

WIDTH = 80  # where no terminal says otherwise


class Story:
    """Prints each part as it happens; colours and live redrawing only on a terminal."""

    def __init__(self, settings: Settings) -> None:
        self.is_terminal = terminal = is_terminal(sys.stdout)
        theme = theme_for(settings.plain or not terminal, os.environ, settings.theme)
        self.console = Console(width=None if terminal else WIDTH, no_color=not theme.colour, highlight=False, markup=False, emoji=False,
                               force_terminal=None if terminal else False)
        self.theme: Theme = theme.on(self.console.color_system)
        self.live = terminal and not self.theme.plain

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, self.theme.rich("title")))

    def question(self, model: str, prompt: str) -> None:
        self.console.print(Text(f"{model}  ", self.theme.rich("quiet")).append(visible(prompt, newlines=True), self.theme.rich("title")))

    def answer(self, completion: Completion, fixed: frozenset[int] = frozenset()) -> None:
        """The answer as coloured tokens and, so that probability never hangs on colour, its least sure tokens in words."""
        self.console.print(answer_view(completion.tokens, self.theme, self.console.width, fixed=fixed))
        self.console.print(Text(f"  least sure: {least_sure(completion.tokens)}", self.theme.rich("quiet"), overflow="fold"))

    def correction(self, node: Node) -> None:
        """One act: at which token, what gave way to what."""
        act = node.correction
        assert act is not None
        removed = node.completion.tokens[act.position] if act.kind in ("end", "go_on") else None
        names = {"replace": "replaced", "delete": "deleted", "end": "ended here", "go_on": "went on"}
        text = Text(f"  token {act.position}: {names[act.kind]}", self.theme.rich("quiet"))
        if act.text and removed is None:
            text.append("  ").append(token_label(act.text), self.theme.rich("good"))
        self.console.print(text.append(f"   {reuse_text(node.completion.timing)}", self.theme.rich("quiet")))

    def anchors(self, anchors: Sequence[Anchor]) -> None:
        self.console.print(anchors_table(anchors, self.theme))

    def train(self, anchors: Sequence[Anchor], steps: Iterator[TrainStep], result: Iterator[TrainingResult | None], target_p: float) -> None:
        """Follow the training: a live panel on a terminal, its last state anywhere."""
        seen: list[TrainStep] = []

        def panel(end: TrainingResult | None) -> RenderableType:
            return training_panel(anchors, seen, end, self.theme, target_p=target_p, width=self.console.width)

        if self.live:
            with Live(panel(None), console=self.console, refresh_per_second=10, transient=True) as live:
                for step in steps:
                    seen.append(step)
                    live.update(panel(None))
        else:
            seen.extend(steps)
        self.console.print(panel(next(result)))

    def result(self, reruns: Sequence[Rerun], card: Scorecard, anchors: Sequence[Anchor]) -> None:
        """Before and after, the scorecard, and one sentence."""
        for rerun in reruns:
            self.console.print(comparison(rerun, self.theme))
        self.console.print()
        self.console.print(Group(scorecard_table(card, len(reruns), self.theme)))
        self.console.print()
        weak = any(anchor.confidence < 1 for anchor in anchors)
        self.console.print(Text(sentence(card, reruns, advice=False, weak=weak), self.theme.rich("title"), overflow="fold"))

    def line(self, text: str) -> None:
        self.console.print(Text(visible(text), self.theme.rich("quiet"), overflow="fold"))
