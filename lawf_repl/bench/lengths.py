"""Figures of long prompts: what reading, correcting and a training step take as the prompt grows, of a random model.

Attention looks at every earlier token, so that a token of a long prompt costs more than one of a short. A training step reads the
prompt again wherever the adapter acts on it, because its states change there; with scope = completion they do not, and a step
does not compute them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lawf_repl.bench.decoding import LONG_ANSWER, Correcting, endless, prompt_of, write
from lawf_repl.bench.figures import Figure, interleaved, timed
from lawf_repl.bench.models import Subject
from lawf_repl.bench.stepping import made_up_case, our_loop
from lawf_repl.engine.base import Engine

Scope = Literal["text", "completion"]
SCOPES: tuple[Scope, Scope] = ("text", "completion")
LONG = (1000, 2000, 4000, 8000)
REPEATS = 3  # a step of a long text takes seconds


def length_figures(subject: Subject) -> Iterator[Figure]:
    """Reading a prompt, the first token after a correction and a training step, for prompts of several lengths."""
    if subject.shape is None:
        return
    engine = subject.engine
    first = 0.0
    with endless(engine):
        for length in LONG:
            prompt = prompt_of(engine, length)
            seconds = timed(lambda prompt=prompt: write(engine, prompt, 1))() / length  # type: ignore[misc]
            first = first or seconds
            if length != LONG[0]:
                yield Figure(f"reading a prompt of {length} tokens, per token, {engine.name}", seconds, first, "s", f"one of {LONG[0]} tokens",
                             repeats=1)
        correcting = Correcting(engine, subject.peer(), LONG[-1], LONG_ANSWER)
        correcting.ours()
        yield Figure(f"first token after a correction at {LONG[-1]} + {LONG_ANSWER} tokens, {engine.name}", correcting.ours(), correcting.theirs(),
                     "s", "reading the prefix again", repeats=1)
    yield from _steps(engine)


def _steps(engine: Engine) -> Iterator[Figure]:
    """A step on the completion alone beside one on the whole text, and both beside themselves on the shortest prompt."""
    shortest: dict[Scope, float] = {}
    for length in LONG:
        seconds = {scope: _step(engine, scope, length) for scope in SCOPES}
        what = f"training step at {length} + {LONG_ANSWER} tokens"
        yield Figure(f"{what}, scope completion, {engine.name}", seconds["completion"], seconds["text"], "s", "scope text", repeats=REPEATS,
                     note="one evaluation of the objective, upper layers; the prompt's states are computed once, before")
        shortest = shortest or seconds
        for scope in SCOPES if length != LONG[0] else ():
            yield Figure(f"{what}, scope {scope}, {engine.name}", seconds[scope], shortest[scope], "s", f"one at {LONG[0]} + {LONG_ANSWER} tokens",
                         repeats=REPEATS)


def _step(engine: Engine, scope: Scope, length: int) -> float:
    """Median seconds of an evaluation, one more before it that does not count."""
    mark = engine.mark("completion")
    case = made_up_case(int(engine.model.config.vocab_size), length + LONG_ANSWER, LONG_ANSWER, mark)
    loop, adapter = our_loop(engine.model, "upper", case, engine.mark(scope))
    try:
        return interleaved({scope: timed(loop._evaluate)}, REPEATS)[scope]
    finally:
        adapter.remove()
