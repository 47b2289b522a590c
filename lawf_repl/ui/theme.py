"""One table of looks, served to rich and to prompt_toolkit alike, and the decision how much of it a terminal gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prompt_toolkit.styles import Style as PromptStyle
from rich.style import Style as RichStyle

UNSURE = 0.5  # below this probability a token is underlined, and n and N stop at it


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of text looks; the colour is what NO_COLOR takes away, the rest is what --plain takes away."""

    colour: str = ""
    bold: bool = False
    dim: bool = False
    underline: bool = False
    reverse: bool = False
    strike: bool = False


# Middle tones that can be read on a dark and on a light background; sure text keeps the terminal's own colour.
LOOKS: dict[str, Look] = {
    "sure": Look(),
    "likely": Look("#5f9fb0"),
    "open": Look("#b58a2f"),
    "unsure": Look("#d07a3a", underline=True),
    "doubtful": Look("#d4574e", underline=True, bold=True),
    "fixed": Look("#4f9d69", bold=True),
    "special": Look("#8a8a8a"),
    "cursor": Look(reverse=True, bold=True),
    "dropped": Look("#8a8a8a", dim=True),
    "before": Look("#d4574e", strike=True),
    "after": Look("#4f9d69", bold=True),
    "good": Look("#4f9d69"),
    "bad": Look("#d4574e"),
    "title": Look(bold=True),
    "quiet": Look("#8a8a8a"),
    "accent": Look("#6c8ebf", bold=True),
    "bar": Look("#6c8ebf"),
    "border": Look("#6a6a6a"),
}


def probability_look(p: float) -> str:
    """The name of the look for a token of probability p."""
    if p >= 0.95:
        return "sure"
    if p >= 0.8:
        return "likely"
    if p >= UNSURE:
        return "open"
    return "unsure" if p >= 0.2 else "doubtful"


@dataclass(frozen=True, slots=True)
class Theme:
    """What of the table reaches the terminal. `plain` also means: no cursor movement, no boxes."""

    colour: bool = True
    plain: bool = False

    def rich(self, name: str) -> RichStyle:
        """The look as a rich style."""
        look = LOOKS[name]
        if self.plain:
            return RichStyle()
        return RichStyle(color=look.colour if self.colour and look.colour else None, bold=look.bold or None, dim=look.dim or None,
                         underline=look.underline or None, reverse=look.reverse or None, strike=look.strike or None)

    def prompt_toolkit(self) -> PromptStyle:
        """All looks as prompt_toolkit classes of the same names, and the parts of its own that we show."""
        rules = {name: self._rule(look) for name, look in LOOKS.items()}
        quiet = rules["quiet"]
        rules |= {
            "bottom-toolbar": f"noreverse {quiet}", "bottom-toolbar.text": f"noreverse {quiet}", "prompt": rules["accent"],
            "completion-menu": "noreverse bg:default fg:default", "completion-menu.completion": f"noreverse bg:default {quiet}",
            "completion-menu.completion.current": "reverse", "completion-menu.meta.completion": f"noreverse bg:default {quiet}",
            "completion-menu.meta.completion.current": f"noreverse bg:default {quiet}",
        }
        return PromptStyle.from_dict(rules)

    def _rule(self, look: Look) -> str:
        if self.plain:
            return ""
        words = [word for word in ("bold", "dim", "underline", "reverse", "strike") if getattr(look, word)]
        return " ".join(([look.colour] if self.colour and look.colour else []) + words)


def theme_for(plain: bool, environment: Mapping[str, str]) -> Theme:
    """The theme a terminal gets: --plain and TERM=dumb take everything away, NO_COLOR (https://no-color.org) the colours."""
    bare = plain or environment.get("TERM", "") in ("dumb", "unknown")
    return Theme(colour=not bare and not environment.get("NO_COLOR"), plain=bare)
