"""What an exported adapter has to give: answers and logits of the live model, with the adapter and without, to compare with elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.engine.reach import behind_marks
from lawf_repl.errors import PromptError
from lawf_repl.export.fresh import logits_at
from lawf_repl.export.source import Source
from lawf_repl.learn.adapter import Adapter
from lawf_repl.records import Message

ROWS = 256        # rows of logits that are compared, of all prompts together: with 150,000 tokens to choose from that is 150 MB
MOST = 16         # prompts of them
FEW = 4           # prompts where every row of their answers is compared
ANSWER = 64       # tokens of an answer where no accepted one is known
GENERAL = ("What is the capital of France?", "Write one sentence about the sea.", "List three colours.", "What is 12 plus 30?")


@dataclass(frozen=True)
class Trial:
    """One prompt: what the adapted model has to answer and what the base answers, in greedy generation."""

    prompt: str
    prompt_ids: tuple[int, ...]
    accepted_ids: tuple[int, ...]
    base_ids: tuple[int, ...]
    given: bool                    # the answer was accepted by a user, and is not only what the live adapter gives
    live_ids: tuple[int, ...]      # what the live adapter gives
    messages: tuple[Message, ...] = ()


def make_trials(engine: Engine, adapter: Adapter, source: Source, most: int = MOST) -> list[Trial]:
    """A trial for each accepted answer (`most` of them, spread evenly); without any, for a few general prompts.

    A weak preference need not win: there the live adapter's own answer is what has to come out. The answers of base and live
    adapter are generated here. Afterwards the adapter is on.
    """
    step = -(-len(source.known) // most) or 1
    asked: list[tuple[str, tuple[int, ...], tuple[int, ...] | None, tuple[Message, ...]]] = [
        (k.case.prompt, k.case.prompt_ids, k.case.completion_ids if all(anchor.confidence == 1 for anchor in k.case.anchors) else None, k.messages)
        for k in source.known[::step]] or [(text, ids, None, ()) for text, ids in general_prompts(engine)]
    prompts = [ids for _, ids, _, _ in asked]
    limits = [len(ids) if ids and ids[-1] not in engine.end_ids else room(len(ids or ())) for _, _, ids, _ in asked]
    adapter.switch(True)
    live = _answers(engine, prompts, max(limits))
    with adapter.off():
        base = _answers(engine, prompts, max(limits))
    adapter.switch(True)
    return [Trial(text, ids, wanted or tuple(now[:limit]), tuple(before[:limit]), wanted is not None, tuple(now[:limit]), messages)
            for (text, ids, wanted, messages), limit, now, before in zip(asked, limits, live, base, strict=True) if now and before]


def room(length: int) -> int:
    """Tokens that a comparison lets a model answer: more than what is expected, so that an answer that goes on is seen."""
    return max(ANSWER, length + 8)


def general_prompts(engine: Engine) -> list[tuple[str, tuple[int, ...]]]:
    out = []
    for text in GENERAL:
        message: Message = {"role": "user", "content": text}
        try:
            out.append((text, engine.prompt_ids([message])))
        except PromptError:  # a template may want something else than a question
            out.append((text, tuple(engine.tokenizer.encode(text))))
    return out


def _answers(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    return greedy_answers(engine.model, prompts, engine.end_ids, tokens, context=engine.context_length, kind=engine.cache_kind)


@torch.no_grad()
def write_reference(engine: Engine, adapter: Adapter, trials: Sequence[Trial], folder: Path, most: int = ROWS) -> Path:
    """trials.json and logits.safetensors (with.N and without.N, each (R, V) float32) in `folder`; returns the first's path.

    At most `most` rows in all, or two a trial. Row r of trial N is behind the token at where[r] of its prompt and accepted answer.
    """
    tensors: dict[str, torch.Tensor] = {}
    rows = []
    for number, trial in enumerate(trials):
        some = spread(len(trial.accepted_ids), max(2, most // max(len(trials), 1)))
        where = [len(trial.prompt_ids) + position - 1 for position in some]
        ids = [*trial.prompt_ids, *trial.accepted_ids]
        adapter.switch(True)
        start = adapter.reach.start(trial.prompt_ids) if adapter.reach is not None else 0
        with behind_marks(engine.model, [start], 0, len(ids)):
            tensors[f"with.{number}"] = logits_at(engine.model, ids, where)
        with adapter.off():
            tensors[f"without.{number}"] = logits_at(engine.model, ids, where)
        rows.append(asdict(trial) | {"where": where, "room": len(trial.accepted_ids) if trial.accepted_ids[-1] not in engine.end_ids
                                     else room(len(trial.accepted_ids))})
    adapter.switch(True)
    save_file(tensors, folder / "logits.safetensors")
    path = folder / "trials.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def spread(count: int, most: int) -> list[int]:
    """At most `most` of range(count), spread evenly, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
