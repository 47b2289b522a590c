"""The second and third table of `lawf bench objective`: our recipe with one thing changed at a time, and many corrections in one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from lawf_repl.bench import ways
from lawf_repl.bench.objective import Meter, Row, Summary, Task, run_ours, summary
from lawf_repl.config import PRESETS, Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.greedy import greedy_answers
from lawf_repl.learn.train import Loop
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.session import Session

Changes = dict[str, Any]
# What each is called, and the settings that it changes; "replay", "confidence" and "way" are no settings of a training.
LEVERS: tuple[tuple[str, Changes], ...] = (
    ("as shipped", {}),
    ("confidence 0.9", {"confidence": 0.9}), ("confidence 0.5", {"confidence": 0.5}), ("confidence 0.25", {"confidence": 0.25}),
    ("no variations", {"variations": 0}), ("no replay prompts", {"replay": False}), ("neither", {"variations": 0, "replay": False}),
    ("nothing held", {"rounds": 1}), ("variations 160", {"variations": 160}), ("hold 0.003", {"hold": 0.003}), ("hold 0.1", {"hold": 0.1}),
    ("rank 1", {"rank": 1}), ("rank 2", {"rank": 2}), ("rank 8", {"rank": 8}), ("rank 16", {"rank": 16}), ("all layers", {"layers": "all"}),
    ("pull 0", {"pull": 0.0}), ("pull 300", {"pull": 300.0}), ("pull 30000", {"pull": 3e4}),
    ("goal_p 0.99", {"goal_p": 0.99}), ("goal_p 0.9999", {"goal_p": 0.9999}), ("goal_p 0.999999", {"goal_p": 0.999999}),
    ("completion only", {"scope": "completion"}),
    ("Adam, steps of 0.001", {"way": ways.Adam1e3}),
    ("Adam, steps of 0.0003", {"way": ways.Adam3e4}), ("Adam, steps of 0.0001", {"way": ways.Adam1e4}),
    ("random directions", {"way": ways.RandomDirections}), ("not whitened", {"way": ways.PlainDirections}),
    ("anchors weigh 4", {"way": ways.Weighted4}), ("anchors weigh 16", {"way": ways.Weighted16}),
    ("cross-entropy", {"way": ways.CrossEntropy}), ("proportions kept", {"way": ways.Proportions}),
    ("weights averaged", {"way": ways.Averaged}), ("64 held at random", {"way": ways.HoldAll}),
    ("quick", PRESETS["quick"]), ("careful", PRESETS["careful"]),
)


def run_levers(engine: Engine, probes: ProbeSet, tasks: Sequence[Task], seeds: int, settings: Settings, on_row: Callable[[Row], None],
               known: Sequence[Row] = ()) -> list[Row]:
    """Our recipe on every edit, once for each lever, read at its end. The rows are called as the lever is; what `known` has is not run again."""
    meter, rows = Meter(engine, probes), []
    over = {(row.recipe, row.edit, row.seed): row for row in known}
    for name, changes in LEVERS:
        own = {key: value for key, value in changes.items() if key not in ("replay", "confidence", "way")}
        held = probes if changes.get("replay", True) else ProbeSet(probes.probes)
        for seed in range(seeds):
            for task in tasks:
                if (name, task.name, seed) in over:
                    rows.append(over[name, task.name, seed])
                    continue
                case = replace(task.case, anchors=tuple(replace(anchor, confidence=changes.get("confidence", 1.0)) for anchor in task.case.anchors))
                for row in run_ours(engine, meter, replace(task, case=case), seed, replace(settings, **own), held, changes.get("way", Loop)):
                    if row.when == "end":
                        rows.append(replace(row, recipe=name))
                        on_row(rows[-1])
    return rows


def summarize_levers(rows: Sequence[Row]) -> list[Summary]:
    """One summary a lever, in the order of LEVERS."""
    trained = len({(row.edit, row.seed) for row in rows})
    groups = {name: [row for row in rows if row.recipe == name] for name, _ in LEVERS}
    return [summary(name, "end", group, trained) for name, group in groups.items() if group]


@dataclass(frozen=True)
class StreamRow:
    """A session after one more correction."""

    corrections: int    # so far
    edit: str           # the last of them
    hold: float         # share of all so far whose prompt gives the accepted answer in free greedy generation
    drift_nats: float
    flips: float
    steps: int
    seconds: float      # of this training


def run_stream(engine: Engine, probes: ProbeSet, edits: Sequence[dict[str, Any]], settings: Settings) -> Iterator[StreamRow]:
    """Correct one prompt after the other in one session, as a user would who keeps the adapter on; a row after each."""
    meter = Meter(engine, probes)
    session = Session(engine, settings, probes)
    try:
        for count, edit in enumerate(edits, 1):
            if session.has_adapter:
                session.switch_adapter(False)  # what the base says is corrected, in whatever order they come
            for _ in session.ask(edit["prompt"]):
                pass
            for _ in session.want(edit["right"]):
                pass
            session.accept()
            for _ in session.train():
                pass
            assert session.training is not None
            drift = meter.reference.measure()
            answers = greedy_answers(engine.model, [case.prompt_ids for case in session.cases], engine.end_ids,
                                     max(len(case.completion_ids) for case in session.cases), kind=engine.cache_kind)
            held = [tuple(answer) == tuple(case.completion_ids) for answer, case in zip(answers, session.cases, strict=True)]
            yield StreamRow(count, edit["name"], mean(held), drift.drift_nats, drift.flips, session.training.steps, session.training.seconds)
    finally:
        session.reset_adapter()
