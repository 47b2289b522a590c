"""Prompts that are almost the corrected one, made by the model itself, with what it answers to them now.

A fix spreads first to what stands nearest: "a single shelf for Rome" learns from "a pair of lamps for Paris". No list of
replay prompts has these, so the base writes them: one token of the user's turn is replaced by another that it finds probable
there, and it finishes the turn from there on. Its own answers to them are what training must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import kept_logits, shared_length, uncached
from lawf_repl.engine.rows import write_rows
from lawf_repl.learn.batch import Pair
from lawf_repl.learn.concern import Concern, words
from lawf_repl.learn.mentions import mentions
from lawf_repl.learn.objective import finite_logprobs, token_kl
from lawf_repl.records import Case, Message

REWRITTEN = 48        # tokens of a turn that are written anew at most; behind an earlier place the rest stays as it was
MORE_TOKENS = 10      # a variation may be this much longer than that
PLACES = 48           # of a turn that are varied at most
TOKENS = 2**15        # of all variations' prompts together: long prompts get fewer
AT_ONCE = 2**12       # tokens of a forward pass that only looks
ANSWER_TOKENS = 96    # of its answer at most
ABOUT = 4             # anchors whose tokens are brought up in other questions, and
MENTIONS = 4          # places where each of them is
ELSEWHERE = 4         # of so many variations one is of another prompt
EVEN = 0.25           # of the turns go to all places alike
SURE = 2              # most probable tokens of a place that are always tried
UNLIKELY = 1e-4       # a token less probable than this does not make a prompt that anybody would write,
FAR_FETCHED = 1e-5    # nor one that is brought up on purpose


class Varied(NamedTuple):
    """Variations of one case's prompt."""

    pairs: list[Pair]              # each with the base's greedy answer
    concern: Concern | None = None  # of the case; None where there are none


@torch.no_grad()
def variations(engine: Engine, case: Case, messages: Sequence[Message], count: int, seed: int = 0,
               stop: Callable[[], bool] = lambda: False, others: Sequence[Pair] = ()) -> Varied:
    """At most `count` variations of a case's prompt, each with the base's greedy answer as ids; turn the adapter off first.

    Some are variations of `others`, prompts in the same template with the base's answers, in which what the case is about is
    brought up. Left out are those that the fix may well concern: the answer is the one that was corrected, or begins with the
    mistake and the request is much the same. They would hold back what paraphrases need. None where `stop()` turns true meanwhile.
    """
    ids = list(case.prompt_ids)
    start, end = user_turn(engine, case.prompt_ids, messages)
    close = ids[end:end + 1]
    drawn = torch.Generator(device="cpu").manual_seed(seed)
    room = min(count, TOKENS // len(ids))
    swapped = swaps(engine, ids, start, end, case)[:room]
    elsewhere = mentions(engine, case, others, ids[end:], as_asked(engine, case), (room - len(swapped)) // ELSEWHERE) if close else []
    beginnings = [*departures(engine, ids, start, end, room - len(swapped) - len(elsewhere), drawn, case), *elsewhere]
    if not beginnings and not swapped:
        return Varied([])
    (_, before), *written = write(engine, ids, end, close, beginnings, drawn, stop, swapped)
    if stop():
        return Varied([])
    concern = Concern(engine, case, start, end, before)
    unlike = {tuple(prompt): (prompt, answer) for prompt, answer in written if prompt != ids}  # two may have been finished alike
    ordered = sorted(unlike.values(), key=lambda pair: (len(pair[0]), pair[0]))
    return Varied([(prompt, answer) for prompt, answer in ordered
                   if answer and answer != list(case.completion_ids) and not concern.same(prompt, answer)], concern)


def together(varied: Sequence[Varied]) -> list[Pair]:
    """Variations of several cases without those that another of the cases may well concern: held, they would hold its mistake."""
    found = {tuple(prompt): (prompt, answer) for own in varied for prompt, answer in own.pairs
             if not any(other.concern and other.concern.same(prompt, answer) for other in varied if other is not own)}
    return list(found.values())


def write(engine: Engine, ids: list[int], end: int, close: list[int], beginnings: Sequence[list[int]],
          drawn: torch.Generator, stop: Callable[[], bool], whole: Sequence[list[int]] = ()) -> list[tuple[list[int], list[int]]]:
    """The prompt `ids` itself, each of the `beginnings` finished by the base up to `end`, and `whole` prompts, each with the base's greedy answer.

    What of the prompt would be long to write anew stays as it was, and so does all where no id `close` marks the end of a turn. A turn that
    does not come to its end is left out.
    """
    # all at once: while one row still writes its question another is told the end of the template, or answers already
    # (the rest of this prompt cannot stand behind the beginning of another)
    new = [False, *(bool(close) and (end - len(beginning) <= REWRITTEN or beginning[:-1] != ids[:len(beginning) - 1]) for beginning in beginnings)]
    rows = [beginning if anew else [*beginning, *ids[len(beginning):]] for beginning, anew in zip([ids, *beginnings], new, strict=True)]
    rows, new = [*rows, *whole], [*new, *([False] * len(whole))]
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
    start = shared_length(*rows)
    end = len(prompt_ids) - min(shared_length(*(row[::-1] for row in rows)), len(prompt_ids) - start)
    return start, end


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
    brought = about(engine, case) - set(banned.tolist())
    each = min(MENTIONS, len(places), count // (4 * max(len(brought), 1)))  # a quarter of all at most
    named = {(row, id_) for id_ in brought for row in p[:, id_].topk(each).indices.tolist()
             if ids[places[row]] != id_ and float(p[row, id_]) >= FAR_FETCHED}
    # Gumbel's way to draw without repeating
    noise = -torch.empty_like(p).exponential_(generator=drawn).log()
    found: list[tuple[float, float, int, int]] = []
    for row, place in enumerate(places):
        here = [id_ for other, id_ in sorted(named) if other == row]
        found += [(-1.0, -float(p[row, id_]), place, id_) for id_ in here]
        others = [id_ for id_ in (p[row].log() + noise[row]).topk(min(count, p.shape[1])).indices.tolist() if id_ not in sure[row]]
        likely = [id_ for id_ in [*sure[row], *others] if float(p[row, id_]) >= UNLIKELY and id_ not in here]
        found += [(0.0 if turn < SURE else (turn - SURE + 1) / weight[row], -float(p[row, id_]), place, id_) for turn, id_ in enumerate(likely)]
    return [[*ids[:place], id_] for _, _, place, id_ in sorted(found)[:count]]


def swaps(engine: Engine, ids: Sequence[int], start: int, end: int, case: Case) -> list[list[int]]:
    """The prompt with what was chosen in place of what was rejected or the other way round, wherever it names one of them in [start, end).

    "Turn on the light in the garden", where "turn off ..." is corrected: nothing stands nearer, and seldom is it written by chance.
    """
    found: list[list[int]] = []
    for anchor in case.anchors[:ABOUT]:
        pairs = list(zip(*(forms(engine, id_) for id_ in (anchor.rejected_id, anchor.chosen_id)), strict=True))
        for place in range(start, end):
            for one, other in (*pairs, *(pair[::-1] for pair in pairs)):
                if one is not None and other is not None and one != other and ids[place] == one:
                    found.append([*ids[:place], other, *ids[place + 1:]])
    return [list(prompt) for prompt in dict.fromkeys(map(tuple, found))]


def forms(engine: Engine, id_: int) -> list[int | None]:
    """The tokens that its word is in a text: as it is, behind a space, at the beginning of a sentence; None where that is no single token."""
    text = engine.token_text(id_)
    (word,) = found if len(found := words(text)) == 1 else ("",)
    out: list[int | None] = [id_]
    for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"):
        tokens = engine.tokenizer.encode(form) if word else []
        out.append(tokens[0] if len(tokens) == 1 else None)
    return out


def about(engine: Engine, case: Case) -> set[int]:
    """Tokens that the case is about: what its first anchors rejected and chose, and how a question would name the first of them."""
    return {id_ for anchor in case.anchors[:ABOUT] for id_ in (anchor.rejected_id, anchor.chosen_id)} | as_asked(engine, case)


def as_asked(engine: Engine, case: Case) -> set[int]:
    """Tokens by which a question would name what the first anchor rejected and chose: " news" and "News" where the answer has "_news"."""
    anchors = case.anchors[:1]
    found: set[int] = set()
    for word in {word for anchor in anchors for id_ in (anchor.rejected_id, anchor.chosen_id) for word in words(engine.token_text(id_))}:
        for form in (f" {word}", word.capitalize(), f" {word.capitalize()}"):
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
