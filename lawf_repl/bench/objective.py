"""`lawf bench objective`: what each recipe costs the rest of the model for the same correction, on the demo world's planted mistakes.

Every recipe is read twice. "equal": at the first step at which every anchor reaches the target probability and greedy generation
gives the accepted answer; ours is cut back to it, by the scale of its LoRA. "end": when its training is over.
Greedy texts are judged by one forward along the expected ids, which is exact: the text differs if and only if a top-1 differs there.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, Literal

import torch

from lawf_repl.bench.recipes import PEER_SETTINGS, PEERS, Peer, train_peer
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Pair, completion_logits, make_batch
from lawf_repl.learn.train import Loop, cut_back, train
from lawf_repl.learn.variations import variations
from lawf_repl.measure.probes import ProbeSet, Reference, base_answers
from lawf_repl.records import Case
from lawf_repl.session import Session

When = Literal["equal", "end"]
OURS = "lawf"
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Task:
    """One planted mistake, corrected, with what its training is measured on."""

    name: str
    kind: str
    case: Case
    paraphrases: tuple[Pair, ...]  # prompt and the accepted answer
    neighbours: tuple[Pair, ...]   # prompt and the base's answer


@dataclass(frozen=True)
class Row:
    """One recipe on one edit with one seed, read once."""

    recipe: str
    when: When
    edit: str
    kind: str
    seed: int
    acquired: bool      # greedy generation gives the accepted answer; at the end it was generated, not only judged
    min_p: float        # of the anchors
    steps: int
    seconds: float      # of training, without measuring
    drift_nats: float
    flips: float
    near_ties: float
    generality: float   # share of the paraphrases that give the accepted answer
    locality: float     # share of the neighbours that give the base's


@dataclass(frozen=True)
class Summary:
    """A recipe over all edits and seeds, at one of the two readings."""

    recipe: str
    when: When
    n: int               # rows read; fewer than were trained where a recipe did not get there
    trained: int
    acquired: float      # of those trained
    min_p: float
    steps: float         # median, as are seconds
    seconds: float
    drift_mean: float
    drift_median: float
    drift_low: float     # 95 % bootstrap interval of the mean, over edits
    drift_high: float
    flips: float
    generality: float    # of all paraphrases of the rows, as an edit's share
    locality: float


def make_tasks(engine: Engine, edits: Sequence[dict[str, Any]], target_p: float) -> list[Task]:
    """Correct each edit toward its right answer, without training it; what the base gives less than `target_p` there is an anchor."""
    tasks = []
    for edit in edits:
        session = Session(engine, Settings(target_p=target_p))
        for _ in session.ask(edit["prompt"]):
            pass
        for _ in session.want(edit["right"]):
            pass
        case = session.accept()
        paraphrases, neighbours = ([engine.prompt_ids([{"role": "user", "content": text}]) for text in edit[name]]
                                   for name in ("paraphrases", "neighbours"))
        tasks.append(Task(edit["name"], edit["kind"], case, tuple((ids, case.completion_ids) for ids in paraphrases),
                          tuple(zip(neighbours, base_answers(engine, neighbours), strict=True))))
    return tasks


def spread(edits: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """The first `count` edits when all kinds take turns; all of them for None."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for edit in edits:
        by_kind[edit["kind"]].append(edit)
    turns = [group[turn] for turn in range(max(map(len, by_kind.values()))) for group in by_kind.values() if turn < len(group)]
    return turns[:count]


class Meter:
    """Reads an adapter that is on the engine's model: drift on the probes, paraphrases and neighbours."""

    def __init__(self, engine: Engine, probes: ProbeSet) -> None:
        self.engine = engine
        self.reference = Reference(engine, probes.probes)

    def read(self, recipe: str, when: When, task: Task, seed: int, min_p: float, steps: int, seconds: float) -> Row:
        """A row of the model as it stands; `min_p`, `steps` and `seconds` are what its training said."""
        drift = self.reference.measure()
        trained: Pair = (task.case.prompt_ids, task.case.completion_ids)
        held = self._exact((trained, *task.paraphrases, *task.neighbours))
        acquired = held[0]
        if when == "end":  # prove it once
            answer = greedy_answers(self.engine.model, [trained[0]], self.engine.end_ids, len(trained[1]), kind=self.engine.cache_kind)[0]
            acquired = tuple(answer) == tuple(trained[1])
        count = 1 + len(task.paraphrases)
        return Row(recipe, when, task.name, task.kind, seed, acquired, min_p, steps, seconds, drift.drift_nats, drift.flips, drift.near_ties,
                   mean(held[1:count]), mean(held[count:]))

    @torch.no_grad()
    def _exact(self, pairs: Sequence[Pair]) -> list[bool]:
        batch = make_batch(pairs, self.engine.device)
        right = completion_logits(self.engine.model, batch).argmax(-1) == batch.targets
        return [bool(row.all()) for row in batch.split(right)]


def run_peer(engine: Engine, meter: Meter, task: Task, seed: int, peer: Peer, target_p: float) -> Iterator[Row]:
    """Train a peer on one edit; one row where it first holds, and one for each end it is read at."""
    adapter = Adapter.fresh(engine.model, replace(PEER_SETTINGS, seed=seed), engine.name)
    try:
        first = True
        for step, fixed, p, seconds in train_peer(peer, adapter, task.case):
            least = float(p.min())
            if first and fixed and least >= target_p:
                first = False
                yield meter.read(peer.name, "equal", task, seed, least, step, seconds)
            if step in peer.read_at:
                name = f"{peer.name} {step}" if len(peer.read_at) > 1 else peer.name
                yield meter.read(name, "end", task, seed, least, step, seconds)
    finally:
        adapter.remove()


def run_ours(engine: Engine, meter: Meter, task: Task, seed: int, settings: Settings, probes: ProbeSet, way: type[Loop] = Loop) -> Iterator[Row]:
    """Train our recipe on one edit as `lawf fix` does: a row for its end, and one for what is left of it when it only just holds.

    `way` is another way to minimise its objective.
    """
    settings = replace(settings, seed=seed)
    began = time.monotonic()
    made = variations(engine, task.case, [{"role": "user", "content": task.case.prompt}], settings.variations, seed, others=probes.replay).pairs
    adapter = Adapter.fresh(engine.model, settings, engine.name, engine.mark(settings.scope))
    try:
        training = train(adapter, [task.case], [*made, *probes.replay], settings, started=began, way=way)
        while True:
            try:
                next(training)
            except StopIteration as end:
                result = end.value
                break
        row = meter.read(OURS, "end", task, seed, min(result.anchor_p), result.steps, result.seconds)
        if row.acquired and row.min_p >= settings.target_p:
            least = cut_back(adapter, [task.case], settings)
            yield meter.read(OURS, "equal", task, seed, min(least), result.steps, result.seconds)
        yield row
    finally:
        adapter.remove()


def run(engine: Engine, probes: ProbeSet, tasks: Sequence[Task], seeds: int, settings: Settings,
        on_row: Callable[[Row], None] = lambda _: None, known: Sequence[Row] = ()) -> list[Row]:
    """Every recipe on every edit with every seed; `on_row` hears of each reading as it is made.

    What `known` has of an earlier run, complete, is not run again.
    """
    meter, rows = Meter(engine, probes), []
    over = {(row.edit, row.seed, family(row.recipe)) for row in known}
    for seed in range(seeds):
        for task in tasks:
            sources = {peer.name: run_peer(engine, meter, task, seed, peer, settings.target_p) for peer in PEERS}
            sources[OURS] = run_ours(engine, meter, task, seed, settings, probes)
            for name, source in sources.items():
                if (task.name, seed, name) in over:
                    rows += [row for row in known if (row.edit, row.seed) == (task.name, seed) and family(row.recipe) == name]
                    continue
                for row in source:
                    rows.append(row)
                    on_row(row)
    return rows


def family(recipe: str) -> str:
    """The recipe that a row is of, without the step it was read at."""
    return next((peer.name for peer in PEERS if recipe == peer.name or recipe.startswith(f"{peer.name} ")), recipe)


def complete(rows: Sequence[Row]) -> list[Row]:
    """Those whose recipe was read to its end; of what was interrupted nothing is left, it is run again."""
    last = {f"{peer.name} {peer.read_at[-1]}" if len(peer.read_at) > 1 else peer.name for peer in PEERS} | {OURS}
    over = {(row.edit, row.seed, family(row.recipe)) for row in rows if row.when == "end" and row.recipe in last}
    return [row for row in rows if (row.edit, row.seed, family(row.recipe)) in over]


def read_rows(text: str) -> list[Row]:
    """Those of an earlier run, one JSON object a line; a last line may be cut off. Raises ValueError, TypeError for anything else."""
    lines = text.splitlines(keepends=True)
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n") and line.strip()]


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """One summary a recipe and reading: "equal" before "end", the peers in their order before ours."""
    order = [*(peer.name for peer in PEERS), OURS]

    def place(row: Row) -> tuple[bool, int]:
        return row.when != "equal", order.index(family(row.recipe))

    groups: dict[tuple[When, str], list[Row]] = {}
    for row in sorted(rows, key=place):
        groups.setdefault((row.when, row.recipe), []).append(row)
    trained = len({(row.edit, row.seed) for row in rows})
    return [summary(recipe, when, group, trained) for (when, recipe), group in groups.items()]


def summary(recipe: str, when: When, rows: Sequence[Row], trained: int) -> Summary:
    """What the rows of one recipe say, at least one; `trained` is how many there would be had it always got there."""
    drift = [row.drift_nats for row in rows]
    low, high = bootstrap(rows)
    return Summary(recipe, when, len(rows), trained, sum(row.acquired for row in rows) / trained, min(row.min_p for row in rows),
                   median(row.steps for row in rows), median(row.seconds for row in rows), mean(drift), median(drift), low, high,
                   mean(row.flips for row in rows), mean(row.generality for row in rows), mean(row.locality for row in rows))


def bootstrap(rows: Sequence[Row]) -> tuple[float, float]:
    """95 % percentile interval of the mean drift, edits drawn with replacement; the seeds of one edit stay together (Efron 1979)."""
    by_edit: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_edit[row.edit].append(row.drift_nats)
    means = [mean(values) for values in by_edit.values()]
    draw = random.Random(0)
    resampled = sorted(mean(draw.choices(means, k=len(means))) for _ in range(RESAMPLES))
    return resampled[round(0.025 * (RESAMPLES - 1))], resampled[round(0.975 * (RESAMPLES - 1))]
