"""One table of looks, served to rich and to prompt_toolkit alike, and the decision how much of it a terminal gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from prompt_toolkit.styles import Style as PromptStyle
from rich.style import Style as RichStyle

from lawf_repl.ui.background import detect

UNSURE = 0.5  # below this probability a token is underlined, and n and N stop at it


@dataclass(frozen=True, slots=True)
class Look:
    """How one kind of text looks; the colour, a name of COLOURS, is what NO_COLOR takes away, the rest is what --plain takes away."""

    colour: str = ""
    bold: bool = False
    dim: bool = False
    underline: bool = False
    reverse: bool = False
    strike: bool = False


# What each tone of background gets; sure text keeps the terminal's own colour. Middle tones can be read on both.
COLOURS: dict[str, dict[str, str]] = {
    "middle": {"blue": "#5f9fb0", "yellow": "#b58a2f", "orange": "#d07a3a", "red": "#d4574e", "green": "#4f9d69", "grey": "#8a8a8a",
               "accent": "#6c8ebf", "line": "#6a6a6a"},
    "dark": {"blue": "#7fc1d4", "yellow": "#dcb35c", "orange": "#ee9a57", "red": "#f2777a", "green": "#7cc893", "grey": "#9a9a9a",
             "accent": "#8fb4ea", "line": "#5c5c5c"},
    "light": {"blue": "#1f6f86", "yellow": "#7d5a00", "orange": "#a9480a", "red": "#b3201a", "green": "#1b7f2f", "grey": "#666666",
              "accent": "#2a5aa8", "line": "#a6a6a6"},
}
# What a terminal of 16 colours gets: nearest in the palette, all of the above would be one grey.
BASIC = {"blue": "cyan", "yellow": "yellow", "orange": "yellow", "red": "red", "green": "green", "grey": "bright_black", "accent": "bright_blue",
         "line": "bright_black"}
LOOKS: dict[str, Look] = {
    "sure": Look(),
    "likely": Look("blue"),
    "open": Look("yellow"),
    "unsure": Look("orange", underline=True),
    "doubtful": Look("red", underline=True, bold=True),
    "fixed": Look("green", bold=True),
    "special": Look("grey"),
    "cursor": Look(reverse=True, bold=True),
    "dropped": Look("grey", dim=True),
    "before": Look("red", strike=True),
    "after": Look("green", bold=True),
    "good": Look("green"),
    "bad": Look("red"),
    "title": Look(bold=True),
    "quiet": Look("grey"),
    "accent": Look("accent", bold=True),
    "bar": Look("accent"),
    "border": Look("line"),
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
    tone: str = "middle"
    basic: bool = False  # the terminal has 16 colours

    def on(self, color_system: str | None) -> Theme:
        """The theme for a rich console with this system of colours."""
        return replace(self, basic=color_system == "standard")

    def _colour(self, look: Look) -> str:
        return COLOURS[self.tone][look.colour] if self.colour and look.colour else ""

    def rich(self, name: str) -> RichStyle:
        """The look as a rich style."""
        look = LOOKS[name]
        if self.plain:
            return RichStyle()
        colour = BASIC.get(look.colour, "") if self.basic and self.colour else self._colour(look)
        return RichStyle(color=colour or None, bold=look.bold or None, dim=look.dim or None,
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
        return " ".join(([self._colour(look)] if self._colour(look) else []) + words)


def theme_for(plain: bool, environment: Mapping[str, str], theme: str = "auto") -> Theme:
    """The theme a terminal gets: --plain and TERM=dumb take everything away, NO_COLOR (https://no-color.org) the colours.

    "dark" and "light" are taken as they are; "auto" asks the terminal where it is one.
    """
    bare = plain or environment.get("TERM", "") in ("dumb", "unknown")
    colour = not bare and not environment.get("NO_COLOR")
    tone = theme if theme != "auto" else detect(environment) if colour else "unknown"
    return Theme(colour=colour, plain=bare, tone=tone if tone in COLOURS else "middle")
