"""Records in, rich renderables out. Nothing is printed here, and no text of a model or user is ever parsed as markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lawf_repl.records import Alternative, Anchor, Progress, Token, TrainingResult, TrainStep
from lawf_repl.ui.layout import token_label, token_names, visible, wrap
from lawf_repl.ui.theme import Theme, probability_look

__all__ = ["AlternativeRow", "alternative_rows", "alternatives_table", "anchors_table", "answer_view", "bar", "least_sure", "percent", "shorten",
           "sparkline", "tokens_table", "training_panel", "visible"]

SHOWN_ANCHORS = 8
STOP_REASONS = {
    "converged": "converged: every anchor reached its target and the model's own greedy answer is the accepted one",
    "plateau": "plateau: it does not get better any more",
    "max_steps": "stopped at the most steps allowed",
    "max_seconds": "stopped at the most seconds allowed",
    "interrupted": "interrupted: this is the best so far",
}


def percent(p: float) -> str:
    """A probability as people read it, five cells wide: never 100 % for what is not certain, never 0 % for what is possible."""
    text = "<0.1%" if 0 < p < 0.001 else "100%" if p >= 1 else f"{min(p * 100, 99.9):.1f}%"
    return text.rjust(5)


def bar(share: float, width: int) -> str:
    """A bar of exactly `width` cells, filled to `share` in eighths."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")).ljust(width)


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a figure in at most `width` cells, lowest to highest over the whole height."""
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(index * (len(values) - 1) / max(width - 1, 1))] for index in range(width)]
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) / (high - low) * 7) if high > low else 0] for value in values)


def progress_text(progress: Progress) -> str:
    """A download or loading as one short line with a bar."""
    share = progress.done / progress.of if progress.of else 0.0
    size = f" of {_size(progress.of)}" if progress.unit == "B" else ""
    return f"{shorten(visible(progress.what), 32)} {bar(share, 12)} {share:.0%}{size}"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = round(count / 1000)
    return f"{count / 1000:.3g} GB" if count >= 1000 else f"{count} GB"


def shorten(text: str, cells: int) -> str:
    """Safe text cut to a width, with … where something was left out."""
    if cell_len(text) <= cells:
        return text
    while text and cell_len(text) > cells - 1:
        text = text[:-1]
    return text + "…"


def answer_view(tokens: Sequence[Token], theme: Theme, width: int, *, fixed: frozenset[int] = frozenset(), indent: int = 2) -> Text:
    """The answer as coloured tokens, laid out for `width` cells; tokens that a fix has set are marked as such."""
    text = Text(no_wrap=True, overflow="crop", end="")
    for number, line in enumerate(wrap(tokens, width - indent - 1)):
        text.append(("\n" if number else "") + " " * indent)
        for chunk in line:
            text.append(chunk.text, theme.rich(token_look(tokens[chunk.position], chunk.position in fixed)))
    return text


def least_sure(tokens: Sequence[Token], count: int = 3) -> str:
    """The tokens that the model was least sure of, in words, so that probability never hangs on colour."""
    least = sorted((token for token in tokens if not token.partial), key=lambda token: token.p)[:count]
    return ", ".join(f"{shorten(token_label(token.text, token.special), 40)} {token.p:.2f}" for token in least)


def least_sure_places(tokens: Sequence[Token], count: int = 3) -> str:
    """The same with their positions, for who has no view in which to point."""
    places = sorted((index for index, token in enumerate(tokens) if not token.partial), key=lambda index: tokens[index].p)[:count]
    return ", ".join(f"{shorten(token_label(tokens[index].text, tokens[index].special), 40)} {percent(tokens[index].p).strip()} at {index}"
                     for index in places)


def token_look(token: Token, fixed: bool = False) -> str:
    """The name of a token's look: what a fix has set, what it is, how sure the model was of it."""
    look = probability_look(token.p)
    return "fixed" if fixed else "special" if token.special and look in ("sure", "likely") else look


@dataclass(frozen=True, slots=True)
class AlternativeRow:
    """One row of the alternatives: a token with its rank (0: most probable), or the mass of all others (no alternative)."""

    alternative: Alternative | None
    label: str
    p: float
    rank: int | None
    current: bool = False


def alternative_rows(token: Token, alternatives: Sequence[Alternative], name: str = "") -> list[AlternativeRow]:
    """The alternatives most probable first, the token that stands there among them, and the rest of the mass as one last row.

    `name` is what the token that stands there is called, where its text does not say it.
    """
    rows = []
    for rank, item in enumerate(alternatives):
        current = item.id == token.id
        special = token.special if current else _looks_special(item.text)
        rows.append(AlternativeRow(item, (name if current else "") or token_label(item.text, special), item.p, rank, current))
    if not any(row.current for row in rows):
        itself = Alternative(token.id, token.text, token.p)
        rows.append(AlternativeRow(itself, name or token_label(token.text, token.special), token.p, token.rank, True))
    rest = max(0.0, 1.0 - sum(row.p for row in rows))
    return [*rows, AlternativeRow(None, "all others", rest, None)]


def _looks_special(text: str) -> bool:
    return len(text) > 4 and text.startswith("<|") and text.endswith("|>")


def _table(theme: Theme, *columns: tuple[str, str]) -> Table:
    """An open table: quiet headings, no lines but one under the headings."""
    table = Table(box=None if theme.plain else box.SIMPLE_HEAD, border_style=theme.rich("border"), header_style=theme.rich("quiet"),
                  show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify in columns:
        table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=justify != "fold", overflow="fold")
    return table


def alternatives_table(token: Token, alternatives: Sequence[Alternative], theme: Theme, name: str = "") -> Table:
    """What could have stood there: number, token, p as bar and figure, rank, and the mass of the rest. `name` as for the rows."""
    table = _table(theme, ("", "right"), ("token", "left"), ("p", "right"), ("", "left"), ("rank", "right"))
    for number, row in enumerate(alternative_rows(token, alternatives, name), start=1):
        rank = "" if row.rank is None else f"#{row.rank + 1}"
        mark = " ← stands here" if row.current else ""
        look = "quiet" if row.alternative is None else probability_look(row.p)
        table.add_row(Text("" if row.alternative is None else str(number)), Text(shorten(row.label, 40) + mark, theme.rich(look)),
                      Text(percent(row.p)), Text(bar(row.p, 16), theme.rich("bar")), Text(rank))
    return table


def tokens_table(tokens: Sequence[Token], theme: Theme, token_bytes: Callable[[int], bytes]) -> Table:
    """Every token of an answer with its figures."""
    table = _table(theme, ("at", "right"), ("token", "left"), ("id", "right"), ("p", "right"), ("rank", "right"), ("entropy", "right"))
    for position, (token, name) in enumerate(zip(tokens, token_names(tokens, token_bytes), strict=True)):
        label = Text(shorten(name, 40), theme.rich(token_look(token)))
        table.add_row(str(position), label, str(token.id), percent(token.p), f"#{token.rank + 1}", f"{token.entropy:.2f}")
    return table


def anchors_table(anchors: Sequence[Anchor], theme: Theme) -> RenderableType:
    """The anchors: where, what instead of what, how strong, and what the base gave the wanted token."""
    if not anchors:
        return Text("no anchors: the base already answers like this", theme.rich("quiet"))
    table = _table(theme, ("at", "right"), ("base says", "left"), ("", "left"), ("wanted", "left"), ("base p", "right"),
                   ("confidence", "right"))
    for anchor in anchors:
        table.add_row(str(anchor.position), Text(shorten(token_label(anchor.rejected), 30), theme.rich("bad")), Text("→"),
                      Text(shorten(token_label(anchor.chosen), 30), theme.rich("good")), percent(anchor.p_ref), f"{anchor.confidence:.2g}")
    return table


def training_panel(anchors: Sequence[Anchor], steps: Sequence[TrainStep], result: TrainingResult | None, theme: Theme, *,
                   target_p: float | None = None, width: int = 80, limits: tuple[int, float] | None = None,
                   elapsed: float | None = None) -> RenderableType:
    """One calm panel: step and time, loss and drift as courses, each anchor's p as a bar, why it will stop, and how it ended.

    `limits` are the rounds and the seconds that training takes at most, `elapsed` the seconds that passed where no step says it.
    """
    inside = min(width, 100) - (2 if theme.plain else 6)
    last = steps[-1] if steps else None
    seconds = max(last.seconds if last else 0.0, elapsed or 0.0)
    head = Text("the base's own answers are read" if last is None else f"step {last.step}", overflow="fold")
    head.append(f"   {seconds:.1f} s" if last or elapsed else " …")
    if last is None and result is not None:
        head = Text("its course was not recorded", theme.rich("quiet"))
    # Once it is over, what counts is the best that was reached, and that is right as soon as any step was.
    right = last is not None and (last.fixed if result is None else any(step.fixed for step in steps))
    if last is not None:
        head.append("   answer right" if right else "   answer not right yet", theme.rich("good" if right else "quiet"))
        if result is None and limits is not None:
            head.append(f"   {time_left(steps, *limits)}", theme.rich("quiet"))
    course = Table.grid(padding=(0, 2, 0, 0))
    drifts = [step.drift for step in steps if step.drift is not None]
    spark = max(10, min(48, inside - 28))
    loss = last.loss if last else result.loss if result else None
    course.add_row(Text("loss", theme.rich("quiet")), Text("…" if loss is None else f"{loss:.4g}"),
                   Text(sparkline([step.loss for step in steps], spark), theme.rich("bar")))
    drift = Text(f"{drifts[-1]:.2g} nats") if drifts else Text("not measured", theme.rich("quiet"))
    course.add_row(Text("drift", theme.rich("quiet")), drift, Text(sparkline(drifts, spark), theme.rich("bar")))
    values = result.anchor_p if result else last.anchor_p if last else tuple(anchor.p_ref for anchor in anchors)
    parts: list[RenderableType] = [head, course, _anchor_bars(anchors, values, theme, inside, target_p)]
    if result is not None:
        parts.append(_ending(anchors, result, theme))
    elif target_p is not None:
        until = "no other answer moves" if last and last.fixed else f"every anchor has {percent(target_p).strip()} and the answer is right"
        parts.append(Text(f"goes on until {until} · Ctrl-C stops now", theme.rich("quiet"), overflow="fold"))
    if theme.plain:
        return Group(Text("training"), *parts)
    return Panel(Group(*parts), title=Text("training", theme.rich("title")), title_align="left", box=box.ROUNDED,
                 border_style=theme.rich("border"), width=min(width, 100), padding=(0, 2))


def time_left(steps: Sequence[TrainStep], rounds: int, max_seconds: float) -> str:
    """How long training may go on, from how long its rounds took so far; it ends sooner where a round finds nothing that moved."""
    last = steps[-1]
    longest = max(0.0, max_seconds - last.seconds)
    if last.round == 1 and not last.fixed:
        return f"round 1 of {rounds}, at most {longest:.0f} s more"
    begun = next((step.seconds for step in steps if step.round == last.round), 0.0) if last.round > 1 else 0.0
    each = begun / (last.round - 1) if last.round > 1 else last.seconds
    left = max(0.0, each - (last.seconds - begun)) + each * (rounds - last.round)
    return f"round {last.round} of {rounds}, at most {min(left, longest):.0f} s more"


def _anchor_bars(anchors: Sequence[Anchor], values: Sequence[float], theme: Theme, width: int, target_p: float | None) -> Table:
    """The least reached anchors, each with its bar."""
    table = Table.grid(padding=(0, 2, 0, 0))
    pairs = sorted(zip(anchors, values, strict=False), key=lambda pair: pair[1])
    figures = {id(anchor): percent(p) if anchor.confidence == 1 else f"{percent(p)} of {percent(anchor.goal).strip()}" for anchor, p in pairs}
    longest = max((len(figure) for figure in figures.values()), default=0)
    label = max(6, (width - 29 - longest) // 2)
    length = max(8, min(20, width - 9 - 2 * label - longest))
    for anchor, p in sorted(pairs[:SHOWN_ANCHORS], key=lambda pair: anchors.index(pair[0])):
        reached = target_p is not None and p >= target_p * anchor.goal
        table.add_row(Text(shorten(token_label(anchor.rejected), label)), Text("→", theme.rich("quiet")),
                      Text(shorten(token_label(anchor.chosen), label), theme.rich("title")),
                      Text(bar(p, length), theme.rich("good" if reached else "bar")),
                      Text(figures[id(anchor)]))
    if len(pairs) > SHOWN_ANCHORS:
        more = f"and {len(pairs) - SHOWN_ANCHORS} more"
        table.add_row(Text(more, theme.rich("quiet")), "", "", Text(f"all at {percent(pairs[SHOWN_ANCHORS][1]).strip()} or above"), "")
    return table


def _ending(anchors: Sequence[Anchor], result: TrainingResult, theme: Theme) -> Text:
    weak = result.stop_reason == "converged" and any(anchor.confidence < 1 for anchor in anchors)  # those need not win
    reason = "converged: every anchor reached its goal" if weak else STOP_REASONS[result.stop_reason]
    text = Text(f"{reason} ({result.steps} steps, {result.seconds:.1f} s", theme.rich("title"), overflow="fold")
    text.append(f", adapter shrunk to {result.scale:.0%})" if result.scale < 1 else ")")
    for index in result.unreachable:
        if index < len(anchors):
            missed = "not reached" if result.stop_reason == "interrupted" else "cannot be reached"
            text.append(f"\n{missed}: {token_label(anchors[index].chosen)} at {anchors[index].position}", theme.rich("bad"))
    return text
