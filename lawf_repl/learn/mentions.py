"""Other prompts in which what a case is about is brought up: "What does Buenas noches mean?", where Buenas was corrected.

The turns that vary the corrected prompt ask in its own way. What was rejected and chosen stands in other questions too, where
nothing of it may change. So the tokens are put into prompts of other kinds, where the model finds them most probable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import shared_length
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.engine.threads import side_by_side
from lawf_repl.learn.batch import Pair, make_batch
from lawf_repl.learn.objective import finite_logprobs
from lawf_repl.learn.reader import Reader
from lawf_repl.records import Case

ANCHORS = 2           # from which on what was rejected and chosen is brought up
PHRASE = 6            # tokens of what was rejected or chosen that are put there one behind the other,
LIKELY = 0.05         # as long as each is so probable there
FAR_FETCHED = 1e-5    # a first token less probable than this is not put there
READ = 2**12          # tokens of other prompts that are looked at; one that is longer is left out
LOOK_BYTES = 2**27    # of the log-probabilities at a time


def mentions(engine: Engine, case: Case, others: Sequence[Pair], tail: Sequence[int], singles: Iterable[int], count: int) -> list[list[int]]:
    """At most `count` beginnings of `others`, each up to a token or phrase of the case that was put in; the most probable of each phrase first.

    Only prompts that end with `tail` are taken, the ids behind a user's turn.
    """
    prompts = [list(prompt) for prompt, _ in others if list(prompt[len(prompt) - len(tail):]) == list(tail)]
    start, behind = shared_length(*prompts), shared_length(*(prompt[::-1] for prompt in prompts))
    longest = min(READ, LOOK_BYTES // (4 * _vocabulary(engine)))
    some = [prompt for prompt in prompts if len(prompt) - behind > start > 0 and len(prompt) <= longest]
    while sum(map(len, some)) > READ:
        some = some[::2]  # ends, because each of them alone is short enough
    phrases = _phrases(engine, case, singles) if some and count > 0 else []
    if not phrases:
        return []
    first = torch.tensor([phrase[0] for phrase in phrases])
    found: list[tuple[int, float, list[int], list[int]]] = []
    at: list[list[tuple[float, list[int]]]] = [[] for _ in phrases]
    for prompt, p in zip(some, _likely(engine, some, start, behind, first), strict=True):  # p (places, phrases)
        best = p.max(0)
        for number, (probable, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            place += start
            if probable >= FAR_FETCHED and prompt[place] != phrases[number][0]:
                at[number].append((probable, prompt[:place]))
    for number, places in enumerate(at):
        unlike: dict[tuple[int, ...], float] = {}
        for probable, beginning in sorted(places, key=lambda one: -one[0]):
            unlike.setdefault(tuple(beginning), probable)
        found += [(turn, -probable, list(beginning), phrases[number]) for turn, (beginning, probable) in enumerate(unlike.items())]
    found.sort(key=lambda one: one[:2])
    return _as_far_as_likely(engine, [(beginning, phrase) for _, _, beginning, phrase in found[:count]])


def _vocabulary(engine: Engine) -> int:
    return int(engine.model.config.get_text_config(decoder=True).vocab_size)


def _phrases(engine: Engine, case: Case, singles: Iterable[int]) -> list[list[int]]:
    """What was chosen and what was rejected at each anchor, with what follows there, and single tokens besides."""
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    behind = 0
    for anchor in case.anchors:
        if anchor.position < behind or len(chosen) == ANCHORS:
            continue  # in the middle of what is brought up already
        behind = anchor.position + PHRASE
        chosen.append(list(case.completion_ids[anchor.position:anchor.position + PHRASE]))
        rejected.append([*case.prompt_ids, *case.completion_ids[:anchor.position], anchor.rejected_id])
    gone_on = greedy_answers(engine.model, rejected, engine.end_ids, PHRASE - 1, context=engine.context_length, kind=engine.cache_kind)
    phrases = [*([row[-1], *more] for row, more in zip(rejected, gone_on, strict=True)), *chosen]
    for phrase in list(phrases):  # "Buenas noches" begins an answer, " Buenas noches" stands in a question
        text = "".join(engine.token_text(id_) for id_ in phrase if id_ not in engine.end_ids)
        phrases += [engine.tokenizer.encode(f" {text}")] if text[:1].isalnum() else []
    known = {phrase[0] for phrase in phrases if phrase}
    phrases += [[id_] for id_ in sorted(singles) if id_ not in known]
    unlike = {phrase[0]: phrase for phrase in phrases if phrase and phrase[0] not in engine.end_ids}
    return list(unlike.values())


def _likely(engine: Engine, prompts: Sequence[Sequence[int]], start: int, behind: int, first: torch.Tensor) -> list[torch.Tensor]:
    """p of each first token (places, phrases) at every place of each prompt's turn."""
    reader, vocabulary = Reader(engine.model), _vocabulary(engine)
    turns: list[Pair] = [(prompt[:start], prompt[start:len(prompt) - behind]) for prompt in prompts]
    room = min(LOOK_BYTES // (4 * vocabulary), -(-sum(len(turn) for _, turn in turns) // reader.most))  # tokens at a time, one prompt at least
    parts: list[list[Pair]] = [[]]
    for turn in turns:
        if parts[-1] and sum(len(own) for _, own in parts[-1]) >= room:
            parts.append([])
        parts[-1].append(turn)
    wanted = first.to(engine.device)

    def look(part: list[Pair]) -> list[torch.Tensor]:
        batch = make_batch(part, engine.device)
        logits = reader.logits(batch).float()
        return [row.exp().cpu() for row in batch.split(logits[:, wanted] - logits.logsumexp(-1, keepdim=True))]

    return [p for found in side_by_side([partial(look, part) for part in parts], reader.most) for p in found]


def _as_far_as_likely(engine: Engine, begun: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Each beginning with its phrase, which ends before the first token that is not LIKELY there."""
    if not begun:
        return []
    batch = make_batch(begun, engine.device)
    p = finite_logprobs(Reader(engine.model).logits(batch)).exp().gather(1, batch.targets[:, None])[:, 0]
    out = []
    for (beginning, phrase), row in zip(begun, batch.split(p), strict=True):
        good = next((place for place, probable in enumerate(row.tolist()) if place and probable < LIKELY), len(phrase))
        ended = next((place for place, id_ in enumerate(phrase) if id_ in engine.end_ids), len(phrase))
        out.append([*beginning, *phrase[:min(good, ended)]])
    return out
