"""Prompts that are almost the corrected one, made by the model itself, with what it answers to them now.

A fix spreads first to what stands nearest: "a single shelf for Rome" learns from "a pair of lamps for Paris". No list of
replay prompts has these, so the base writes them: one token of the user's turn is replaced by another that it finds probable
there, and it finishes the turn from there on. Its own answers to them are what training must not change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher

import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import kept_logits, uncached
from lawf_repl.engine.rows import write_rows
from lawf_repl.learn.batch import Pair
from lawf_repl.learn.objective import finite_logprobs, token_kl
from lawf_repl.records import Anchor, Case, Message

REWRITTEN = 48        # tokens of a turn that are written anew at most; behind an earlier place the rest stays as it was
MORE_TOKENS = 10      # a variation may be this much longer than that
PLACES = 48           # of a turn that are varied at most
TOKENS = 2**15        # of all variations' prompts together: long prompts get fewer
AT_ONCE = 2**12       # tokens of a forward pass that only looks
ANSWER_TOKENS = 96    # of its answer at most
SAME = 0.5            # share of the turn's tokens that a variation has too, in their order, from which on it may be the same request
ABOUT = 4             # anchors whose tokens are brought up in other questions, and
MENTIONS = 4          # places where each of them is
EVEN = 0.25           # of the turns go to all places alike
SURE = 2              # most probable tokens of a place that are always tried
UNLIKELY = 1e-4       # a token less probable than this does not make a prompt that anybody would write,
FAR_FETCHED = 1e-5    # nor one that is brought up on purpose
_WORD, _NAME, _NAME_BEGUN = re.compile(r"[^\W_]+"), re.compile(r"\w+"), re.compile(r"\w*$")


@torch.no_grad()
def variations(engine: Engine, case: Case, messages: Sequence[Message], count: int, seed: int = 0,
               stop: Callable[[], bool] = lambda: False) -> list[Pair]:
    """At most `count` variations of a case's prompt, each with the base's greedy answer as ids; turn the adapter off first.

    Left out are those that the fix may well concern: the answer is the one that was corrected, or begins with the mistake
    and the request is much the same. They would hold back what paraphrases need. None where `stop()` turns true meanwhile.
    """
    ids = list(case.prompt_ids)
    start, end = user_turn(engine, case.prompt_ids, messages)
    close = ids[end:end + 1]
    drawn = torch.Generator(device="cpu").manual_seed(seed)
    beginnings = departures(engine, ids, start, end, min(count, TOKENS // len(ids)), drawn, case)
    if not beginnings:
        return []
    (_, before), *written = write(engine, ids, end, close, beginnings, drawn, stop)
    if stop():
        return []
    concern = Concern(engine, case, ids[start:end], before)
    unlike = {tuple(prompt): (prompt, answer) for prompt, answer in written if prompt != ids}  # two may have been finished alike
    ordered = sorted(unlike.values(), key=lambda pair: (len(pair[0]), pair[0]))
    return [(prompt, answer) for prompt, answer in ordered
            if answer and answer != list(case.completion_ids) and not concern.same(prompt[start:len(prompt) - (len(ids) - end)], answer)]


class Concern:
    """Tells variations that the fix may well concern from those that it does not."""

    def __init__(self, engine: Engine, case: Case, turn: Sequence[int], before: Sequence[int]) -> None:
        self._engine, self._turn, self._before = engine, list(turn), list(before)
        self._words = words(self._text(turn))
        self._anchor = anchor = case.anchors[0] if case.anchors else None
        self._mistake = [*case.completion_ids[:anchor.position], anchor.rejected_id] if anchor else None
        self._wrong = wrong = self._name([*self._mistake, *before[len(self._mistake):]] if self._mistake else (), anchor)
        right = self._name(case.completion_ids, anchor)
        self._brought, self._lost = wrong - right - self._words, (right - wrong) & self._words

    def same(self, turn: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether a variation's mistake is that of the corrected prompt: it asks much the same, and for what was rejected no more than that did."""
        if answer != self._before and (self._mistake is None or answer[:len(self._mistake)] != self._mistake
                                       or self._name(answer, self._anchor) != self._wrong):  # 12 begins with 1 and is not it
            return False
        asked = words(self._text(turn))
        if self._brought & asked or self._lost - asked:
            return False  # "turn it on", where "turn it off" was answered with "on"
        common = sum(block.size for block in SequenceMatcher(None, self._turn, list(turn), autojunk=False).get_matching_blocks())
        return answer == self._before or common >= SAME * len(self._turn)

    def _name(self, ids: Sequence[int], anchor: Anchor | None) -> frozenset[str]:
        """The words of the name that the anchor stands in, in an answer: send_message has two."""
        if anchor is None:
            return frozenset()
        begun = _NAME_BEGUN.search(self._text(ids[:anchor.position]))
        name = _NAME.search(self._text(ids), begun.start() if begun else 0)
        return words(name.group()) if name else frozenset()

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self._engine.token_text(id_) for id_ in ids)


def words(text: str) -> frozenset[str]:
    """The words of a text, in small letters."""
    return frozenset(word.casefold() for word in _WORD.findall(text))


def write(engine: Engine, ids: list[int], end: int, close: list[int], beginnings: Sequence[list[int]],
          drawn: torch.Generator, stop: Callable[[], bool]) -> list[tuple[list[int], list[int]]]:
    """The prompt `ids` itself and each of the `beginnings` finished by the base up to `end`, each with the base's greedy answer.

    What would be long to write anew stays as it was, and so does all where no id `close` marks the end of a turn. A turn that
    does not come to its end is left out.
    """
    # all at once: while one row still writes its question another is told the end of the template, or answers already
    new = [False, *(bool(close) and end - len(beginning) <= REWRITTEN for beginning in beginnings)]
    rows = [beginning if anew else [*beginning, *ids[len(beginning):]] for beginning, anew in zip([ids, *beginnings], new, strict=True)]
    lengths = [len(row) for row in rows]
    prompts = [0 if anew else len(row) for row, anew in zip(rows, new, strict=True)]  # their lengths, 0 until the turn is at its end
    left = [REWRITTEN + MORE_TOKENS if anew else ANSWER_TOKENS for anew in new]

    def choose(logits: torch.Tensor, which: Sequence[int]) -> list[int]:
        best: list[int] = logits.argmax(-1).tolist()
        asking = [i for i, row in enumerate(which) if not prompts[row]]
        if asking:
            p = logits[torch.tensor(asking, device=logits.device)].float().softmax(-1).cpu()
            for i, id_ in zip(asking, torch.multinomial(p, 1, generator=drawn)[:, 0].tolist(), strict=True):
                best[i] = id_
        return best

    def follow(row: int, id_: int) -> Sequence[int] | None:
        lengths[row], left[row] = lengths[row] + 1, left[row] - 1
        if stop():
            return None
        if prompts[row]:
            return None if id_ in engine.end_ids or not left[row] else ()
        if id_ == close[0]:
            rest = ids[end + 1:]
            prompts[row] = lengths[row] = lengths[row] + len(rest)
            left[row] = ANSWER_TOKENS
            return rest
        return None if id_ in engine.end_ids or not left[row] else ()

    texts = write_rows(engine.model, rows, choose, follow, engine.cache_kind, engine.context_length)
    return [(text[:length], text[length:]) for text, length in zip(texts, prompts, strict=True) if length]


def user_turn(engine: Engine, prompt_ids: Sequence[int], messages: Sequence[Message]) -> tuple[int, int]:
    """Where in the prompt's ids the last message stands: [start, end). Everything but its marks where there is no template."""
    def with_text(text: str) -> tuple[int, ...]:
        return engine.prompt_ids([*messages[:-1], {"role": "user", "content": text}])

    rows = [list(prompt_ids), list(with_text("7")), list(with_text("zq"))]
    start = shared(rows)
    end = len(prompt_ids) - min(shared([row[::-1] for row in rows]), len(prompt_ids) - start)
    return start, end


def shared(rows: Iterable[Sequence[int]]) -> int:
    """How many first ids all rows have in common."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def departures(engine: Engine, ids: Sequence[int], start: int, end: int, count: int, drawn: torch.Generator, case: Case) -> list[list[int]]:
    """The prompt's beginnings up to a token of [start, end), that one replaced, `count` in all.

    At every place the most probable others; what the case is about (the tokens that were rejected and chosen) where they are
    most probable; then others as often as the model would write them, more of them the more a place decides what the answer is.
    """
    places = [place for place in range(start, end) if place > 0]  # before the first token there is nothing to ask the model
    if not places or count < 1:
        return []
    places = places[::-(-len(places) // PLACES)]
    where = torch.tensor([place - 1 for place in places], device=engine.device)
    keep = kept_logits(engine.model, where)
    logits = engine.model(input_ids=torch.tensor([list(ids)], device=engine.device), **uncached(engine.model), **keep).logits[0]
    p = (logits if keep else logits[where]).float().softmax(-1).cpu()  # (places, V)
    banned = torch.tensor(sorted({*engine.end_ids, *ids[end:end + 1]}), dtype=torch.long)
    p[:, banned] = 0
    p[torch.arange(len(places)), [ids[place] for place in places]] = 0
    sure = p.topk(min(SURE, p.shape[1])).indices.tolist()
    weight = influence(engine, ids, places, [row[0] for row in sure], case)
    about = {id_ for anchor in case.anchors[:ABOUT] for id_ in (anchor.rejected_id, anchor.chosen_id)} | as_asked(engine, case)
    about -= set(banned.tolist())
    each = min(MENTIONS, len(places), count // (4 * max(len(about), 1)))  # a quarter of all at most
    mentions = {(row, id_) for id_ in about for row in p[:, id_].topk(each).indices.tolist()
                if ids[places[row]] != id_ and float(p[row, id_]) >= FAR_FETCHED}
    # Gumbel's way to draw without repeating
    noise = -torch.empty_like(p).exponential_(generator=drawn).log()
    found: list[tuple[float, float, int, int]] = []
    for row, place in enumerate(places):
        named = [id_ for other, id_ in sorted(mentions) if other == row]
        found += [(-1.0, -float(p[row, id_]), place, id_) for id_ in named]
        others = [id_ for id_ in (p[row].log() + noise[row]).topk(min(count, p.shape[1])).indices.tolist() if id_ not in sure[row]]
        likely = [id_ for id_ in [*sure[row], *others] if float(p[row, id_]) >= UNLIKELY and id_ not in named]
        found += [(0.0 if turn < SURE else (turn - SURE + 1) / weight[row], -float(p[row, id_]), place, id_) for turn, id_ in enumerate(likely)]
    return [[*ids[:place], id_] for _, _, place, id_ in sorted(found)[:count]]


def as_asked(engine: Engine, case: Case) -> set[int]:
    """Tokens by which a question would name what the first anchor rejected and chose: " news" and "News" where the answer has "_news"."""
    anchors = case.anchors[:1]
    found: set[int] = set()
    for word in {word for anchor in anchors for id_ in (anchor.rejected_id, anchor.chosen_id) for word in words(engine.token_text(id_))}:
        for form in (f" {word}", word.capitalize()):
            ids = engine.tokenizer.encode(form)
            if len(ids) == 1:
                found.add(ids[0])
    return found


def influence(engine: Engine, ids: Sequence[int], places: Sequence[int], others: Sequence[int], case: Case) -> list[float]:
    """How much each place decides what stands at the first anchor: KL there when its token becomes another, relative to the mean of all places."""
    upto = case.completion_ids[:case.anchors[0].position] if case.anchors else ()
    rows = [[*ids, *upto], *([*ids[:place], other, *ids[place + 1:], *upto] for place, other in zip(places, others, strict=True))]
    if len(rows) * len(rows[0]) > TOKENS:
        return [1.0] * len(places)
    each = max(1, AT_ONCE // len(rows[0]))
    read = [engine.model(input_ids=torch.tensor(rows[i:i + each], device=engine.device), **uncached(engine.model), **kept_logits(engine.model, 1))
            .logits[:, -1] for i in range(0, len(rows), each)]
    logprobs = finite_logprobs(torch.cat(read))  # (1 + places, V)
    kl = token_kl(logprobs[:1], logprobs[1:]).cpu() + 1e-3
    relative: list[float] = (kl / kl.mean() + EVEN).tolist()
    return relative
