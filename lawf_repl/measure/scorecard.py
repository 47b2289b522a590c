"""The scorecard: does the fix hold, does it reach paraphrases, did neighbours and probes stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.errors import Stopped
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Pair
from lawf_repl.measure.probes import measure_drift
from lawf_repl.records import Check, Message, Rerun, Scorecard
from lawf_repl.spans import TAIL, text_behind

Question = tuple[Sequence[Message], str]  # conversation, expected text


def answer_texts(engine: Engine, conversations: Sequence[Sequence[Message]], max_tokens: int, stop: Callable[[], bool] | None = None) -> list[str]:
    """Greedy answers as text, without the end-of-turn token, of the model as it stands. Raises Stopped where `stop()` turns true."""
    prompts = [engine.prompt_ids(messages) for messages in conversations]
    ids = greedy_answers(engine.model, prompts, engine.end_ids, max_tokens, context=engine.context_length, kind=engine.cache_kind,
                         stop=stop)
    return [answer_text(engine, prompt, row) for prompt, row in zip(prompts, ids, strict=True)]


def answer_text(engine: Engine, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text of an answer behind its prompt, without the end-of-turn token; some decoders strip a first space otherwise."""
    shown = ids[:-1] if ids and ids[-1] in engine.end_ids else ids
    return text_behind(engine.tokenizer, prompt_ids[-TAIL:], shown)


def measure(engine: Engine, adapter: Adapter, reruns: Sequence[Rerun], paraphrases: Sequence[Question], neighbours: Sequence[Sequence[Message]],
            probes: Sequence[Pair], max_tokens: int, stop: Callable[[], bool] = lambda: False) -> Scorecard:
    """Everything that was given is measured; what was not stays None or empty, and so does what comes after `stop()`.

    `paraphrases` carry the text that is expected of them; a neighbour's is what the base gives, found here.
    """
    card = Scorecard(sum(rerun.fixed for rerun in reruns) / len(reruns) if reruns else None)
    try:
        with adapter.off():
            base = answer_texts(engine, neighbours, max_tokens, stop)
        conversations = [messages for messages, _ in paraphrases] + list(neighbours)
        expected = [text for _, text in paraphrases] + base
        got = answer_texts(engine, conversations, max_tokens, stop)
        checks = [Check(messages[-1]["content"], wanted, given) for messages, wanted, given in zip(conversations, expected, got, strict=True)]
        card = replace(card, paraphrases=tuple(checks[:len(paraphrases)]), neighbours=tuple(checks[len(paraphrases):]))
        if probes:
            card = replace(card, probes=measure_drift(engine, adapter, probes, stop))
    except Stopped:
        pass
    return card
