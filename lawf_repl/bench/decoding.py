"""Figures of generating: decoding against transformers and against the memory, and a correction against reading the prefix again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from lawf_repl.bench.figures import REPEATS, Figure, interleaved, timed
from lawf_repl.bench.models import Subject
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.engine.memory import weight_bytes
from lawf_repl.engine.products import product_of
from lawf_repl.measure.prompts import demo_probes
from lawf_repl.records import Token
from lawf_repl.session import Session

TEXT = "What is the capital of Australia? It is a town that was made for it, between the two that wanted to be. "
PROMPT, ANSWER = 200, 30  # tokens before a correction
DECODED = {"demo": 256, "135m": 64, "0.6b": 16}
SHORT_REPEATS = 25  # of what takes milliseconds, as a change of processes does
LONG_ANSWER = 300
READ_BYTES = 2**29  # far more than any cache holds
QUESTION, RIGHT = "What is the capital of Australia?", "The capital of Australia is Canberra."
GENERATE = f"transformers {transformers.__version__} generate()"


@contextmanager
def endless(engine: Engine) -> Iterator[None]:
    """Inside, no token ends an answer: all answers are as long as asked for."""
    ends, engine.end_ids = engine.end_ids, frozenset()
    try:
        yield
    finally:
        engine.end_ids = ends


def prompt_of(engine: Engine, length: int) -> list[int]:
    """An ordinary text as `length` ids."""
    ids = engine.tokenizer.encode(TEXT)
    return (ids * (length // len(ids) + 1))[:length]


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def write(engine: Engine, prompt: list[int], count: int) -> list[Token]:
    """An answer of `count` tokens as a user gets it, from an empty cache."""
    tokens = list(Decoder(engine).generate(prompt, (), Sampling(count)))
    assert len(tokens) == count
    return tokens


def write_plainly(model: Any, prompt: list[int], count: int) -> list[int]:
    """The same by transformers: greedy, ids only."""
    ids = torch.tensor([prompt], device=model.device)
    model.generation_config.eos_token_id = None  # what a call leaves out is taken from there
    config = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        out: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt):].tolist()
    assert len(out) == count
    return out


def decode_figures(subject: Subject) -> Iterator[Figure]:
    """Tokens per second with everything recorded: against generate() without, and against the time that reading the weights takes."""
    engine = subject.engine
    count = DECODED.get(subject.shape or "demo", 64) if engine.device.type == "cpu" else LONG_ANSWER
    prompt = prompt_of(engine, 32)
    with endless(engine):
        seconds = beside(engine, subject.peer(), prompt, count)
        yield Figure(f"decode with statistics, {engine.name}", count / seconds["ours"], count / seconds["theirs"], "tokens/s", GENERATE,
                     1.5 if subject.is_demo else None, "higher", note=f"{len(prompt)} + {count} tokens, greedy, the prompt's reading included")
        weights = read_bytes(engine.model)
        if weights < READ_BYTES / 2:
            return  # a processor's cache holds a part of it: its memory is not what limits it
        seconds = interleaved({"ours": lambda: per_token(engine, prompt, count), "theirs": reading(engine)})
        yield Figure(f"decode with statistics, {engine.name}", 1 / seconds["ours"], 1 / seconds["theirs"] / weights, "tokens/s",
                     f"{weights / 1e9:.2f} GB of weights over {1e-9 / seconds['theirs']:.1f} GB/s", 0.8 if engine.device.type == "cpu" else 0.6,
                     "higher", note=f"{torch.get_num_threads()} threads; memory read as a sum and in products, {READ_BYTES >> 20} MiB, best of 9")


def beside(engine: Engine, peer: Any, prompt: list[int], count: int) -> dict[str, float]:
    """Seconds of an answer, ours and the peer's."""
    return interleaved({"ours": timed(lambda: write(engine, prompt, count)), "theirs": timed(lambda: write_plainly(peer, prompt, count))})


def read_bytes(model: Any) -> int:
    """Bytes of the weights that a step of one token reads: all but an embedding that is not the head too, of which it reads a row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    unread = embedding.weight.nbytes if head is None or head.weight is not embedding.weight else 0
    return weight_bytes(model) - int(unread)


def per_token(engine: Engine, prompt: list[int], count: int) -> float:
    """Seconds per token of an answer, without the reading of the prompt."""
    tokens = Decoder(engine).generate(prompt, (), Sampling(count + 1))
    next(tokens)
    began = time.perf_counter()
    assert sum(1 for _ in tokens) == count
    return (time.perf_counter() - began) / count


def reading(engine: Engine) -> Callable[[], float]:
    """A run that gives the seconds per byte that reading memory takes: the best of three, in the fastest of the ways there are.

    A matrix of the model's dtype is added up, times a vector, by torch's product and by ours; what each is good at differs by
    the processor.
    """
    dtype = engine.model.dtype
    rows = READ_BYTES // dtype.itemsize // 4096
    matrix = torch.ones(rows, 4096, dtype=dtype, device=engine.device)
    vector = torch.ones(1, 4096, dtype=dtype, device=engine.device)
    made = product_of(engine.model.get_output_embeddings())
    ways: list[Callable[[], object]] = [matrix.sum, lambda: torch.mv(matrix, vector[0]), lambda: made(vector, matrix, None)]

    @torch.no_grad()
    def once(way: Callable[[], object]) -> float:
        synchronize(engine.device)
        began = time.perf_counter()
        way()
        synchronize(engine.device)
        return time.perf_counter() - began

    return lambda: min(once(way) for way in ways for _ in range(3)) / matrix.nbytes


class Correcting:
    """Corrections of one answer, again and again, each from the whole answer's cache."""

    def __init__(self, engine: Engine, peer: Any, prompt: int, kept: int) -> None:
        self.engine, self.peer = engine, peer
        self.prompt = prompt_of(engine, prompt)
        self.decoder = Decoder(engine)
        self.tokens = list(self.decoder.generate(self.prompt, (), Sampling(kept + 10)))
        self.known = self.tokens[:kept]
        self.fix = next(one.id for one in self.tokens[kept].alternatives if one.id != self.tokens[kept].id)
        self.prefix = [*self.prompt, *(token.id for token in self.known), self.fix]

    def ours(self) -> float:
        """Seconds from a correction of one token behind the kept ones to the first token that the model puts behind it."""
        self.decoder.logits_at([*self.prompt, *(token.id for token in self.tokens)])  # the answer as it was, in the cache
        began = time.perf_counter()
        going_on = self.decoder.generate(self.prompt, [self.fix], Sampling(len(self.known) + 2), known=self.known)
        assert len(list(going_on)) == 2
        return time.perf_counter() - began

    @torch.no_grad()
    def theirs(self) -> float:
        """Seconds to the same token by reading everything before it again."""
        began = time.perf_counter()
        out = self.peer(input_ids=torch.tensor([self.prefix], device=self.peer.device), use_cache=True, logits_to_keep=1)
        int(out.logits[0, -1].argmax())
        return time.perf_counter() - began


def correction_figures(subject: Subject) -> Iterator[Figure]:
    """The wait for the first token after a correction, against reading the prefix again."""
    engine = subject.engine
    with endless(engine):
        correcting = Correcting(engine, subject.peer(), PROMPT, ANSWER)
        seconds = interleaved({"ours": correcting.ours, "theirs": correcting.theirs}, SHORT_REPEATS)
    yield Figure(f"first token after a correction at {PROMPT} + {ANSWER} tokens, {engine.name}", seconds["ours"], seconds["theirs"], "s",
                 "reading the prefix again", 0.12, repeats=SHORT_REPEATS, note="with the statistics of the fix and of the token behind it")


def reply_figures(subject: Subject) -> Iterator[Figure]:
    """Seconds from accepting a corrected answer to the adapted model's own, of the demo model: training and one answer."""
    if not subject.is_demo:
        return
    engine = subject.engine
    probes = demo_probes(engine)

    def once() -> float:
        session = Session(engine, subject.settings, probes)
        for _ in session.ask(QUESTION):
            pass
        for _ in session.want(RIGHT):
            pass
        try:
            began = time.perf_counter()
            session.accept()
            for _ in session.train():
                pass
            assert session.rerun()[0].fixed
            return time.perf_counter() - began
        finally:
            session.reset_adapter()

    yield Figure(f"accept to adapted reply, {engine.name}", interleaved({"ours": once})["ours"], 1.0, "s", "one second", 6.0,
                 note=f"{REPEATS} trainings of the same correction, its {len(probes.replay)} replay prompts answered before")
