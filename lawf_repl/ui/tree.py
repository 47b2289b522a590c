"""The tree of a session as text: answers, what was corrected in them, trainings, and where the user stands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from rich.text import Text

from lawf_repl.records import Case, Node, Timing, Token
from lawf_repl.ui.layout import groups, token_label, visible
from lawf_repl.ui.motion import starts_word
from lawf_repl.ui.render import shorten
from lawf_repl.ui.theme import Theme

LEAST = 12  # cells that an answer gets at least
QUOTED = 60  # cells of an answer that a line names at most


def correction_text(before: Node, after: Node, theme: Theme) -> Text:
    """What a correction did: where, what gave way, what came."""
    correction = after.correction
    line = Text()
    if correction is None:
        return line
    if correction.kind == "go_on" and not correction.ids:  # an unfinished answer went on by itself
        return line.append(f"at {correction.position}  ", theme.rich("quiet")).append("went on")
    start, new_tokens, old_tokens = correction.position, after.completion.tokens, before.completion.tokens
    stop = start + 1
    while stop < len(old_tokens) and not starts_word(old_tokens, stop) and old_tokens[stop].text[:1].isalnum():
        stop += 1  # the rest of the word that was wrong
    old, new = _whole(old_tokens, start, stop), _whole(new_tokens, start, start + len(correction.ids))
    line.append(f"at {start}  ", theme.rich("quiet"))
    if correction.kind == "delete":
        ids = before.completion.ids
        back = next((i for i in range(start + 1, len(ids)) if ids[i:i + len(correction.ids)] == correction.ids), stop)
        return line.append("deleted ").append(shorten(_whole(old_tokens, start, back), 30), theme.rich("before"))
    if correction.kind == "end":
        return line.append("ends here")
    line.append(shorten(old or "∅", 30), theme.rich("before")).append(" → ", theme.rich("quiet"))
    return line.append(shorten(new, 30), theme.rich("after"))


def _whole(tokens: Sequence[Token], start: int, stop: int) -> str:
    """What tokens show, with all of a character that is only partly among them."""
    spans = groups(tokens)[start:stop]
    shown = tokens[spans[0][0]:spans[-1][1] + 1] if spans else ()
    return "".join(token_label(token.text, token.special) for token in shown if token.text)


def reuse_text(timing: Timing) -> str:
    """What became of the cached states, and the time until the model could go on."""
    reuse, time = timing.reuse, f"{timing.prefill_s * 1000:.0f} ms"
    if reuse is None:
        return ""
    read = f"{reuse.read} read in {time}"
    return {"cut": f"cache cut to {reuse.kept} tokens · {read}", "kept": f"cache of {reuse.kept} tokens kept · {read}",
            "snapshot": f"snapshot at {reuse.kept} tokens restored · {read}", "recomputed": f"prefix recomputed: {read}",
            "new": f"{reuse.read} tokens read in {time}"}[reuse.how]


def sampled_text(count: int) -> str:
    """What it means that `count` accepted tokens are neither the model's choice nor anchors."""
    return (f"{count} sampled token{'' if count == 1 else 's'} of the accepted answer: not the model's first choice and no anchor, "
            "so greedy generation will not give the same text")


def replaced_text(case: Case) -> str:
    """What it means for `case` that another answer to its prompt was accepted: one prompt has one case."""
    return f"in place of the answer to this prompt accepted before: {shorten(visible(case.accepted), QUOTED) or '∅'}"


def tree_view(nodes: Sequence[Node], here: int | None, prompt_of: Callable[[Node], str], theme: Theme, width: int) -> Text:
    """Every prompt with its answers below it, one line a node; a line of descent stays in its column until it branches."""
    children: dict[int | None, list[Node]] = defaultdict(list)
    for node in nodes:
        children[node.parent].append(node)
    lines: list[Text] = []
    digits = len(str(len(nodes)))

    def add(node: Node, first: str, rest: str) -> None:
        while True:
            lines.append(_line(node, nodes, here, first, digits, theme, width))
            below = children[node.id]
            if len(below) != 1:
                break
            node, first = below[0], rest
        for child in below:
            last = child is below[-1]
            add(child, rest + ("└ " if last else "├ "), rest + ("  " if last else "│ "))

    for root in children[None]:
        lines.append(Text(f"› {shorten(visible(prompt_of(root)), max(width - 2, LEAST))}", theme.rich("title")))
        add(root, "  ", "  ")
    return Text("\n").join(lines)


def _line(node: Node, nodes: Sequence[Node], here: int | None, guide: str, digits: int, theme: Theme, width: int) -> Text:
    stands = node.id == here
    line = Text(guide, theme.rich("quiet")).append(f"{'●' if stands else '○'} {node.id:>{digits}}  ", theme.rich("accent" if stands else "quiet"))
    if node.training is not None:
        line.append("trained", theme.rich("title"))
        line.append(f"  {node.training.steps} steps, {node.training.stop_reason.replace('_', ' ')}")
    elif node.parent is not None:
        line.append(correction_text(nodes[node.parent], node, theme)).append("   ")
    mark = "  ← here" if stands else ""
    if node.training is None:
        room = max(width - line.cell_len - len(mark), LEAST)
        line.append(shorten(visible(node.completion.text) or "∅", room), theme.rich("sure" if stands else "quiet"))
    return line.append(mark, theme.rich("accent"))


def cases_view(cases: Sequence[Case], theme: Theme, width: int) -> Text:
    """The accepted answers, numbered from 1, each with its anchors."""
    if not cases:
        return Text("no answer is accepted yet", theme.rich("quiet"))
    lines = []
    for number, case in enumerate(cases, 1):
        count = f"{len(case.anchors)} anchor{'' if len(case.anchors) == 1 else 's'}"
        lines.append(Text(f"{number}  ", theme.rich("accent")).append(shorten(visible(case.prompt), max(width - 16, LEAST)), theme.rich("title"))
                     .append(f"  {count}", theme.rich("quiet")))
        lines.append(Text(f"   {shorten(visible(case.accepted), max(width - 4, LEAST))}"))
    return Text("\n").join(lines)
