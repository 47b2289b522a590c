"""The course of every recipe's training: how far the anchors are, and what the rest of the model has lost by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean, mean

import torch

from lawf_repl.bench.objective import OURS, Meter, Task
from lawf_repl.bench.recipes import PEER_SETTINGS, PEERS, Peer, train_peer
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.reach import behind_marks, reach_of
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.train import train
from lawf_repl.learn.variations import variations
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.records import Message

STEPS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128)  # at which a course is looked at
SCALES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)     # of the finished LoRA: from the base to what was learned in a straight line
FEWEST_NATS = 1e-9                                               # less drift than this is drawn as this


@dataclass(frozen=True)
class Point:
    """One recipe on one edit, at one moment of its training."""

    recipe: str
    edit: str
    at: float          # steps, or the scale for the finished adapter cut back
    min_p: float       # of the anchors
    drift_nats: float


def run_curves(engine: Engine, probes: ProbeSet, tasks: Sequence[Task], settings: Settings, on_point: Callable[[Point], None]) -> list[Point]:
    """Every recipe on every edit, with the settings' seed. Ours is drawn twice: step by step, and by scale from the base to its end."""
    meter, points = Meter(engine, probes), []
    for task in tasks:
        for source in (*(_peer(engine, meter, task, peer, settings.seed) for peer in PEERS), _ours(engine, meter, task, settings, probes)):
            for point in source:
                points.append(point)
                on_point(point)
    return points


def _peer(engine: Engine, meter: Meter, task: Task, peer: Peer, seed: int) -> Iterator[Point]:
    adapter = Adapter.fresh(engine.model, replace(PEER_SETTINGS, seed=seed), engine.name)
    try:
        for step, _, p, _ in train_peer(peer, adapter, task.case):
            if step in STEPS:
                yield Point(peer.name, task.name, step, float(p.min()), meter.reference.measure().drift_nats)
    finally:
        adapter.remove()


def _ours(engine: Engine, meter: Meter, task: Task, settings: Settings, probes: ProbeSet) -> Iterator[Point]:
    asked: Message = {"role": "user", "content": task.case.prompt}
    made = variations(engine, task.case, [asked], settings.variations, settings.seed, others=probes.replay).pairs
    adapter = Adapter.fresh(engine.model, settings, engine.name, engine.mark(settings.scope))
    try:
        for step in train(adapter, [task.case], [*made, *probes.replay], settings):
            if step.step in STEPS:
                yield Point(OURS, task.name, step.step, min(step.anchor_p), meter.reference.measure().drift_nats)
        weights = adapter.snapshot()
        for scale in SCALES:
            adapter.restore(weights, scale)
            yield Point(f"{OURS} by scale", task.name, scale, _least_p(engine, task), meter.reference.measure().drift_nats)
    finally:
        adapter.remove()


@torch.no_grad()
def _least_p(engine: Engine, task: Task) -> float:
    """The least p of the anchors' chosen tokens, of the model as it stands."""
    ids = torch.tensor([[*task.case.prompt_ids, *task.case.completion_ids]], device=engine.device)
    reach = reach_of(engine.model)
    with behind_marks(engine.model, [reach.start(task.case.prompt_ids) if reach is not None else 0], 0, ids.shape[1]):
        logprobs = engine.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    start = len(task.case.prompt_ids) - 1
    return min(float(logprobs[start + anchor.position, anchor.chosen_id].exp()) for anchor in task.case.anchors)


def curves(points: Sequence[Point]) -> dict[str, list[tuple[float, float]]]:
    """For each recipe (mean least p, geometric mean of the drift in nats) over the edits, in the order of its training."""
    out: dict[str, list[tuple[float, float]]] = {}
    for recipe in dict.fromkeys(point.recipe for point in points):
        own = [point for point in points if point.recipe == recipe]
        for at in sorted({point.at for point in own}):
            here = [point for point in own if point.at == at]
            out.setdefault(recipe, []).append((mean(point.min_p for point in here), geometric_mean(max(p.drift_nats, FEWEST_NATS) for p in here)))
    return out
