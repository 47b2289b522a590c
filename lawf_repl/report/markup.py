"""HTML that is escaped by construction: what is a plain string is text, only `tag` makes markup."""

from __future__ import annotations

from html import escape

from lawf_repl.ui.layout import visible

VOID = frozenset({"meta"})  # elements of HTML without an end; those of SVG have one


class Html(str):
    """Markup. Nothing but this module makes it of text."""

    __slots__ = ()


Child = Html | str | None
Attribute = str | int | None


def text(value: str, newlines: bool = True) -> Html:
    """Any text, with everything that a page would obey or hide shown as in the terminal: markup, controls, bidi marks."""
    return Html(escape(visible(value, newlines=newlines), quote=True))


def joined(*children: Child) -> Html:
    """Parts behind each other; strings are text, None is nothing."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children if child is not None))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element. An attribute that is None is left out; `class_` is class, `aria_label` is aria-label."""
    given = "".join(f' {_attribute(key)}="{text(str(value), newlines=False)}"' for key, value in attributes.items() if value is not None)
    inside = "" if name in VOID else f"{joined(*children)}</{name}>"
    return Html(f"<{name}{given}>{inside}")


def _attribute(key: str) -> str:
    """An attribute's name as HTML and SVG write it."""
    key = key.rstrip("_")
    return key if key in ("viewBox", "preserveAspectRatio") else key.replace("_", "-")


def trusted(source: str) -> Html:
    """A part that lies in this package, such as the style sheet. Never for anything that was read."""
    return Html(source)


def own(value: str) -> Html:
    """Text of a model or a user inside a line of ours: its direction moves nothing around it."""
    return tag("bdi", value)
