"""Which prompts are held and which are measured on: the user's, the embedded model's own, or the general set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from lawf_repl.config import Settings
from lawf_repl.conversations import read_prompts
from lawf_repl.engine.base import DEMO_NAME, Engine
from lawf_repl.errors import PromptError
from lawf_repl.measure.answers import Ids, KeptAnswers
from lawf_repl.measure.probes import ANSWER_TOKENS, ROWS, ProbeSet, base_answers

DEMO_PROBES = Path(__file__).parent.parent / "demo" / "probes.json"
# Short prompts in English and Chinese over common skills. None asks the model who it is: that is what many corrections are about.
GENERAL_PROMPTS = Path(__file__).parent / "general.jsonl"
CPU_WORK = 2.7e10    # general prompts times parameters on a CPU at most: all 200 up to 135M, 45 of them at 600M
FEWEST = 16          # general prompts in any case


class Prompts:
    """Probes and replay prompts whose base answers may still be missing; they are made when first needed, and kept on disk."""

    def __init__(self, engine: Engine, probes: Iterable[Ids], replay: Iterable[Ids], known: Mapping[Ids, Ids],
                 kept: KeptAnswers | None = None) -> None:
        """What is measured on is not trained on: a replay prompt that is a probe too is left out."""
        self._engine, self._kept = engine, kept
        self._probes = tuple(dict.fromkeys(map(tuple, probes)))
        self._replay = tuple(ids for ids in dict.fromkeys(map(tuple, replay)) if ids not in set(self._probes))
        self._known = dict(known)
        self._looked = kept is None

    @property
    def answered(self) -> ProbeSet:
        """Those that have their answers."""
        return ProbeSet(*(tuple((ids, self._known[ids]) for ids in some if ids in self._known) for some in (self._probes, self._replay)))

    def missing(self) -> list[Ids]:
        """Prompts without an answer; looks on disk once."""
        if self._kept is not None and not self._looked:
            self._looked = True
            self._known = self._kept.read() | self._known
        return [ids for ids in (*self._replay, *self._probes) if ids not in self._known]

    def answer(self, stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, int]]:
        """Let the model as it stands (turn the adapter off first) answer what is missing; yields (done, of all that were missing).

        What is there when `stop()` turns true is kept.
        """
        missing = self.missing()
        if missing:
            yield 0, len(missing)
        for start in range(0, len(missing), ROWS):
            if stop():
                break
            some = missing[start:start + ROWS]
            answers = base_answers(self._engine, some)
            self._known |= {ids: tuple(answer) for ids, answer in zip(some, answers, strict=True) if answer}
            yield min(start + ROWS, len(missing)), len(missing)
        if missing and self._kept is not None:
            self._kept.write({ids: self._known[ids] for ids in missing if ids in self._known})


def load_probes(engine: Engine, settings: Settings) -> Prompts:
    """What the settings name; else the embedded prompts for the embedded model, and the general set for any other.

    Raises UsageError for a file that is no file of prompts, PromptError for a prompt that the model cannot be asked.
    """
    known, probes, replay = _demo_answers(engine) if engine.name == DEMO_NAME else ({}, *_general(engine, settings.system))
    given = [[engine.prompt_ids(messages) for messages in read_prompts(Path(path), settings.system)] if path else None
             for path in (settings.probes, settings.replay_prompts)]
    for path, some in zip((settings.probes, settings.replay_prompts), given, strict=True):
        longest = max(map(len, some or ()), default=0)
        if engine.context_length is not None and longest >= engine.context_length:
            raise PromptError(f"{path}: a prompt has {longest} tokens, and with its answer {engine.name} takes {engine.context_length}: shorten it")
    kept = KeptAnswers(engine, ANSWER_TOKENS) if engine.name != DEMO_NAME or any(given) else None
    return Prompts(engine, probes if given[0] is None else given[0], replay if given[1] is None else given[1], known, kept)


def demo_probes(engine: Engine) -> ProbeSet:
    """The embedded probes of the embedded model, answered."""
    known, probes, replay = _demo_answers(engine)
    prompts = Prompts(engine, probes, replay, known)
    for _ in prompts.answer():
        pass
    return prompts.answered


def _demo_answers(engine: Engine) -> tuple[dict[Ids, Ids], list[Ids], list[Ids]]:
    """Answers by prompt, probes and replay prompts: made by demo/build.py with the shipped weights."""
    rows = json.loads(DEMO_PROBES.read_text(encoding="utf-8"))
    known: dict[Ids, Ids] = {}
    lists: list[list[Ids]] = []
    for name in ("probes", "replay"):
        lists.append([engine.prompt_ids([{"role": "user", "content": row["prompt"]}]) for row in rows[name]])
        known |= {ids: tuple(row["answer_ids"]) for ids, row in zip(lists[-1], rows[name], strict=True) if row.get("answer_ids")}
    return known, lists[0], lists[1]


def _general(engine: Engine, system: str | None) -> tuple[list[Ids], list[Ids]]:
    """The general set as (probes, replay prompts). On a CPU, where a large model would answer for many minutes, fewer of them."""
    rows = [json.loads(line) for line in GENERAL_PROMPTS.read_text(encoding="utf-8").splitlines()]
    lead = [{"role": "system", "content": system}] if system else []
    count = len(rows)
    if engine.device.type == "cpu":
        size = sum(parameter.numel() for parameter in engine.model.parameters())
        count = min(count, max(FEWEST, int(CPU_WORK / max(size, 1))))
    pairs = [rows[index:index + 2] for index in range(0, len(rows), 2)]  # two of one skill: one to hold, one to measure on
    few = count // 2
    chosen = [row for index in range(few) for row in pairs[index * len(pairs) // few]]
    lists = []
    for use in ("probe", "replay"):
        asked = []
        for row in chosen:
            if row["use"] == use:
                with suppress(PromptError):  # a template may want something else than a question, then there is none
                    asked.append(engine.prompt_ids([*lead, {"role": "user", "content": row["prompt"]}]))
        lists.append([ids for ids in asked if engine.context_length is None or len(ids) < engine.context_length])
    return lists[0], lists[1]
