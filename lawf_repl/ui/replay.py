"""What came of replaying sessions, as renderables: one line a session, and the first divergence with both texts and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lawf_repl.ui.layout import token_label, visible
from lawf_repl.ui.theme import Theme

if TYPE_CHECKING:  # the real import brings torch
    from lawf_repl.agreement import Divergence, Row
    from lawf_repl.records import Token

ALTERNATIVES = 5
TIES = 3
WORDS = {"ok": ("same", "good"), "diverged": ("DIVERGES", "bad"),
         "changed": ("OTHERWISE, on another model or software than it was recorded with:", "bad"), "error": ("not replayed:", "bad")}


def row_view(row: Row, theme: Theme, tolerance: float) -> RenderableType:
    """One session: what was checked, and what of it was otherwise."""
    word, look = WORDS[row.status]
    parts: list[RenderableType] = [Text(f"{word:<9} ", theme.rich(look)).append(visible(row.session), theme.rich("title"))]
    checks = [("first answers", row.before_matches), ("continuations", row.continuations_match), ("anchors", row.anchors_match),
              ("after retraining" if row.retrained else "after training", row.after_matches)]
    line = Text()
    for name, same in checks:
        if same is not None:
            line.append(f"{name} {'same' if same else 'OTHERWISE'}   ", theme.rich("quiet" if same else "bad"))
    if line.plain.strip():
        line.rstrip()
        parts.append(Padding(line, (0, 0, 0, 2), expand=False))
    if row.drift_nats is not None:
        then = "" if row.drift_then is None else f" (then {row.drift_then:.1e})"
        parts.append(Text(f"  drift {row.drift_nats:.1e} nats{then}", theme.rich("quiet")))
    for tie in row.ties[:TIES]:
        parts.append(Text(f"  tie: {tie.where}, token {tie.position}: ", theme.rich("quiet")).append(
            f"{token_label(tie.then)} then, {token_label(tie.now)} now; p {tie.difference:.4f} apart, within {tolerance:g} they count as equal"))
    if len(row.ties) > TIES:
        parts.append(Text(f"  and {len(row.ties) - TIES} ties more", theme.rich("quiet")))
    parts += [Text(f"  {visible(text)}", theme.rich("sure"), overflow="fold") for text in row.changed]
    if row.error:
        parts.append(Text(f"  {visible(row.error)}", theme.rich("bad"), overflow="fold"))
    parts += [Text(f"  {visible(text)}", theme.rich("quiet"), overflow="fold") for text in row.notes]
    if row.first_divergence is not None:
        parts.append(divergence_view(row.first_divergence, theme))
    return Group(*parts)


def divergence_view(found: Divergence, theme: Theme) -> RenderableType:
    """The first divergence: where, both texts, both distributions."""
    at = "" if found.position is None else f", token {found.position}"
    head = Text(f"  {found.where}{at} (line {found.line} of the file): ", theme.rich("bad")).append(visible(found.prompt))
    parts: list[RenderableType] = [head]
    if found.note:
        parts.append(Text(f"    {found.note}", theme.rich("quiet")))
    for name, text in (("then", found.then), ("now", found.now)):
        parts.append(Text(f"    {name:<5}", theme.rich("quiet"), overflow="fold").append(visible(text)))
    if found.then_token is not None or found.now_token is not None:
        parts.append(distributions(found.then_token, found.now_token, theme))
    return Group(*parts)


def distributions(then: Token | None, now: Token | None, theme: Theme) -> Table:
    """The most probable tokens then and now, side by side; the chosen ones are marked."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "then", "p", "now", "p"):
        table.add_column(name, justify="right" if name == "p" else "left", header_style=theme.rich("quiet"), no_wrap=True)
    rows = [_rows(token) for token in (then, now)]
    for left, right in zip(*rows, strict=True):
        if left[0] or right[0]:
            table.add_row("   ", Text(left[0]), left[1], Text(right[0]), right[1])
    return table


def _rows(token: Token | None) -> list[tuple[str, str]]:
    """Label and p of the most probable tokens, the chosen one among them."""
    if token is None:
        return [("the answer had ended", "")] + [("", "")] * ALTERNATIVES
    shown = [(one.id, one.text, one.p) for one in token.alternatives[:ALTERNATIVES]]
    if token.id not in [id_ for id_, _, _ in shown]:
        shown = [(token.id, token.text, token.p), *shown]
    out = [(f"{'→ ' if id_ == token.id else '  '}{token_label(text)}", f"{p:.4f}") for id_, text, p in shown]
    return out + [("", "")] * (ALTERNATIVES + 1 - len(out))


def summary(rows: Sequence[Row]) -> str:
    """One sentence about all of them."""
    count = {status: sum(row.status == status for row in rows) for status in WORDS}
    ties = sum(len(row.ties) for row in rows)
    words = [f"{count['ok']} of {len(rows)} as recorded"]
    words += [f"{count['diverged']} diverged"] * bool(count["diverged"])
    words += [f"{count['changed']} otherwise on another model or software"] * bool(count["changed"])
    words += [f"{count['error']} could not be replayed"] * bool(count["error"])
    words += [f"{ties} tie{'s' * (ties > 1)}"] * bool(ties)
    return ", ".join(words)
