"""Decoding one conversation token by token, with what the model thought at each.

The loop is our own: one forward a token over a cache that survives corrections, and the statistics of the untempered
distribution taken from the same logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lawf_repl.engine.base import Engine
from lawf_repl.engine.cache import KeptCache
from lawf_repl.engine.reach import Reach
from lawf_repl.engine.statistics import statistics_of
from lawf_repl.errors import PromptError
from lawf_repl.records import Alternative, Completion, Finish, Reuse, Timing, Token
from lawf_repl.spans import REPLACEMENT, Shown, TextStream, Tokenizer, group_start

Stop = Callable[[], bool]
ALTERNATIVES = 8  # recorded with each token


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 512     # of the whole completion
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0        # nucleus, where the temperature is above 0
    seed: int = 0


class Decoder:
    """Generates answers with one engine, reusing its cache from call to call."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = KeptCache(engine.model, engine.cache_kind)
        self._writing: _Writing | None = None

    @property
    def last(self) -> Completion | None:
        """The latest generation, as far as it came."""
        return self._writing.completion() if self._writing is not None else None

    @property
    def cached(self) -> int:
        """Tokens whose states are kept."""
        return len(self.cache.ids)

    def drop_cache(self, reach: Reach | None = None) -> None:
        """Forget the cached states; called whenever the adapter is switched, trained or replaced.

        `reach` is that of an adapter that leaves prompts alone, where one like it was all that was ever on: then the prompt's stay.
        """
        if reach is None:
            self.cache.drop()
        else:
            self.cache.drop_behind(reach)

    def logits_at(self, ids: Sequence[int], count: int = 1) -> torch.Tensor:
        """Logits behind each of the last `count` ids (count, V), from the cache where it holds a prefix of them."""
        ids = list(ids)
        known = self.cache.recall(ids, count)
        first = len(ids) - count + (0 if known is None else len(known))  # the place whose logits have to be computed first
        kept = self.cache.keep_prefix(ids[:first], ids)
        if self.cache.snapshots and kept < first:
            self.cache.feed(ids[kept:first], 1)
            kept = first
        self.cache.mark()  # the place that a next correction here comes back to
        if kept == len(ids) and known is not None:
            return known
        rows = self.cache.feed(ids[kept:], len(ids) - first)
        return rows if known is None else torch.cat((known, rows))

    def generate(self, prompt_ids: Sequence[int], forced: Sequence[int], sampling: Sampling, stop: Stop = lambda: False,
                 known: Sequence[Token] = ()) -> Iterator[Token]:
        """Yield `forced` ids as tokens with their statistics, then what the model goes on with.

        `known` are the tokens of the completion that stay before `forced`. A token is yielded when its text is known, so the
        tokens of one character come together. Ends at an end-of-turn token, at `sampling.max_tokens`, at the context's end, or
        when `stop()` is true. `last` holds the completion, also while it grows.
        Raises PromptError if the prompt is empty or fills the context.
        """
        self._writing = None  # what is there must never be taken for what was asked now
        limit = self.limit(prompt_ids, sampling)
        prompt = tuple(prompt_ids)
        page = _Page(self.engine.tokenizer, prompt, known)
        generator = torch.Generator(device="cpu").manual_seed(sampling.seed)
        greedy, end_ids = sampling.temperature <= 0, self.engine.end_ids
        started = time.perf_counter()
        rows = self.logits_at([*prompt, *(token.id for token in known), *forced], len(forced) + 1)  # (len(forced) + 1, V)
        read = time.perf_counter()
        self._writing = writing = _Writing(prompt, page, read - started, self._reuse(len(prompt) + len(known) + len(forced)))
        count, queued = len(known), len(forced)
        row = rows[0]
        try:
            while count < limit or queued:
                if queued:
                    token = self._token(forced[len(forced) - queued], row)
                    queued -= 1
                else:
                    token = self._token(None if greedy else choose(row, sampling, generator), row)
                settled = page.write(token)
                count += 1
                ended = token.id in end_ids
                writing.wrote(time.perf_counter() - read, "eos" if ended else "interrupted" if count < limit else "length")
                yield from settled
                if ended or (count >= limit and not queued) or (not queued and stop()):
                    break
                row = rows[writing.produced] if writing.produced <= len(forced) else self.cache.feed([token.id], 1)[0]
            yield from page.close()  # the answer may end inside a character: its last token shows what is there
        finally:
            page.close()

    def tokens(self, context: Sequence[int], ids: Sequence[int]) -> tuple[Token, ...]:
        """`ids` as tokens with the statistics of the model behind `context`, generating nothing."""
        if not ids:
            return ()
        rows = self.logits_at([*context, *ids[:-1]], len(ids))
        page = _Page(self.engine.tokenizer, context, ())
        for id_, row in zip(ids, rows, strict=True):
            page.write(self._token(id_, row))
        page.close()
        return tuple(page.tokens)

    def alternatives(self, context: Sequence[int], count: int) -> tuple[Alternative, ...]:
        """The `count` most probable next tokens behind `context`."""
        known = self.cache.recall(list(context), 1)  # then the cache stays as it is, with what stands behind the place
        probabilities = torch.softmax((self.logits_at(context) if known is None else known)[0].float(), -1)  # (V,)
        top = probabilities.topk(min(count, len(probabilities)))
        return tuple(Alternative(id_, self.engine.token_name(id_), p) for p, id_ in zip(top.values.tolist(), top.indices.tolist(), strict=True))

    def _token(self, id_: int | None, row: torch.Tensor) -> Token:
        """A token without its text, with the statistics of logits (V,); None is the most probable one."""
        found = statistics_of(row, ALTERNATIVES)
        ids, values = found.ids, found.logprobs
        if id_ is None:
            id_ = found.most_probable
        if id_ in ids and values[ids.index(id_)] > values[-1]:
            own = values[ids.index(id_)]
            rank = sum(value > own for value in values)
        else:  # beyond the recorded ones, and where the last of them are equal, all are looked through
            own = values[ids.index(id_)] if id_ in ids else float(row[id_]) - float(row[ids[0]]) + values[0]
            rank = int((row > row[id_]).sum())
        name = self.engine.token_name
        alternatives = tuple([Alternative(i, name(i), math.exp(value)) for value, i in zip(values, ids, strict=True)])
        return Token(id_, "", math.exp(own), rank, found.entropy, alternatives, self.engine.tokenizer.is_special(id_), True)

    def _reuse(self, whole: int) -> Reuse:
        how, kept = self.cache.reuse
        return Reuse(how, kept, whole - kept)

    def limit(self, prompt_ids: Sequence[int], sampling: Sampling) -> int:
        """Most tokens that an answer to this prompt can have. Raises PromptError where there is room for none."""
        context = self.engine.context_length
        if not prompt_ids:
            raise PromptError("the prompt is empty: this model has no template that would frame it, so type at least one character")
        if context is not None and len(prompt_ids) >= context:
            raise PromptError(f"the prompt has {len(prompt_ids)} tokens and the model's context is {context}: shorten the prompt")
        return sampling.max_tokens if context is None else min(sampling.max_tokens, context - len(prompt_ids))


@dataclass
class _Writing:
    """A generation as it stands."""

    prompt: tuple[int, ...]
    page: _Page
    prefill_s: float
    reuse: Reuse
    finish: Finish = "interrupted"
    produced: int = 0
    decode_s: float = 0.0

    def wrote(self, decode_s: float, finish: Finish) -> None:
        """One more token, and how the answer would end with it."""
        self.produced += 1
        self.decode_s, self.finish = decode_s, finish

    def completion(self) -> Completion:
        """What is there."""
        speed = self.produced / max(self.decode_s, 1e-9) if self.produced else 0.0
        return Completion(self.prompt, tuple(self.page.tokens), self.finish, Timing(self.prefill_s, self.decode_s, speed, self.reuse))


class _Page:
    """The tokens of a completion as they are written, each with its text as soon as that is known."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], known: Sequence[Token]) -> None:
        self.tokens = list(known)
        self._kept = len(known)
        self._settled = len(known)  # texts of tokens before this one are known
        if known and known[-1].text.endswith(REPLACEMENT) and not known[-1].special:
            self._settled -= 1  # it was the last token of an answer: now its character can be completed
        self._settled = group_start(known, self._settled)
        ids = [token.id for token in known]
        self._stream = TextStream(tokenizer, [*prompt, *ids[:self._settled]])
        for id_ in ids[self._settled:]:
            self._settle(self._stream.push(id_))

    def write(self, token: Token) -> list[Token]:
        """Put a token, partial and without its text, behind the others; returns the new ones whose text is known now."""
        self.tokens.append(token)
        return self._settle(self._stream.push(token.id))

    def close(self) -> list[Token]:
        """Nothing more comes: what is open gets the text it has."""
        return self._settle(self._stream.flush())

    def _settle(self, known: list[Shown]) -> list[Token]:
        start = self._settled
        for shown in known:
            one = self.tokens[self._settled]
            self.tokens[self._settled] = Token(one.id, shown.text, one.p, one.rank, one.entropy, one.alternatives, one.special, shown.partial)
            self._settled += 1
        return self.tokens[max(start, self._kept):max(self._settled, self._kept)]


def choose(row: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next id from logits (V,): the most probable at temperature 0, else sampled from the tempered nucleus."""
    if sampling.temperature <= 0:
        return int(row.argmax())
    row = row.float().cpu()
    probabilities = torch.softmax((row - row.max()) / sampling.temperature, -1)  # the top is 0: no temperature overflows
    if sampling.top_p < 1:
        ordered, indices = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first token is always inside
        probabilities = torch.zeros_like(probabilities).scatter(0, indices, ordered.masked_fill(outside, 0.0))
    return int(torch.multinomial(probabilities, 1, generator=generator))
