"""Figures of training: a step against the paper's loop, its memory, the memory of a whole session, and a training against trl.

A step of ours is one evaluation: the objective along the accepted answer, forward and backward. An iteration of L-BFGS takes
between one and four of them. The paper's loop keeps a second copy of the model, from which it has the logits of prompt and
completion; a step is full logits, gradient checkpointing, LoRA on all layers and AdamW. Peaks are of processes of their own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Literal

import torch

from lawf_repl.bench.figures import Figure, interleaved, timed
from lawf_repl.bench.memory import MemoryKind, measured
from lawf_repl.bench.models import Subject, random_model
from lawf_repl.bench.recipes import ANCHOR_WEIGHT, LEARNING_RATE, PEER_SETTINGS, REST_WEIGHT
from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import make_batch
from lawf_repl.learn.objective import finite_logprobs, lawf_loss, make_target
from lawf_repl.learn.standing import prepare
from lawf_repl.learn.train import Loop
from lawf_repl.records import Anchor, Case

TOKENS, COMPLETION = 300, 100
CORRECTED = 30, 60          # positions of the completion that are anchors
EDITS = 12                  # of the demo world, each kind twice
GOALS: dict[Literal["upper", "all"], float] = {"upper": 0.35, "all": 0.6}
RATES: tuple[tuple[float | None, str, tuple[float | None, float | None]], ...] = (
    (None, "its own rate 2e-5", (0.5, 0.2)), (2e-4, "rate 2e-4", (None, None)))
MEMORY_GOAL, SESSION_GOAL = 0.55, 1.6
PAPER = f"the paper's loop (second copy, full logits, checkpointing, AdamW), torch {torch.__version__}"
Step = Callable[[], object]


def made_up_case(vocabulary: int, tokens: int = TOKENS, completion: int = COMPLETION, mark: Sequence[int] = ()) -> Case:
    """Random ids, two of the completion corrected; the prompt ends with `mark`."""
    ids = torch.randint(3, min(vocabulary, 40000), (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt, answer = (*ids[:tokens - completion - len(mark)], *mark), tuple(ids[-completion:])
    anchors = tuple(Anchor(place, 0, answer[place], "", "", 1.0, 0.0) for place in CORRECTED if place < completion)
    return Case("made up", prompt, answer, anchors)


class Undirected(Loop):
    """Ours as it is, but for the directions, which a step costs the same in."""

    def aim(self) -> None:
        """The ones that were drawn."""


def our_loop(model: Any, layers: str, case: Case, mark: Sequence[int] = ()) -> tuple[Loop, Adapter]:
    """A training of ours just before its first step, nothing held but the case itself; with a `mark`, it acts from there on."""
    settings = Settings(layers=layers)
    adapter = Adapter.fresh(model, settings, "bench", mark)
    return Undirected(adapter, prepare(adapter, [case], (), (), settings), settings, time.monotonic()), adapter


def paper_step(model: Any, case: Case, other: Any = None) -> tuple[Step, Adapter]:
    """The paper's loop before its first step. `other` is the second copy; without one the model itself gives the same logits."""
    adapter = Adapter.fresh(model, PEER_SETTINGS, "bench")
    batch = make_batch([(case.prompt_ids, case.completion_ids)], model.device)
    with torch.no_grad():
        whole = finite_logprobs((other if other is not None else model)(input_ids=batch.ids, use_cache=False).logits[0])  # (T, V)
    target = make_target(whole[batch.columns], batch.lengths, [case.anchors], ANCHOR_WEIGHT / REST_WEIGHT)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def step() -> float:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        optimizer.zero_grad(set_to_none=True)
        logprobs = torch.log_softmax(model(input_ids=batch.ids, use_cache=False).logits[0].float(), -1)  # (T, V)
        loss = REST_WEIGHT * lawf_loss(logprobs[batch.columns], target)
        loss.backward()
        optimizer.step()
        model.gradient_checkpointing_disable()
        model.eval()
        return float(loss.detach()) + 0.0 * len(whole)  # the logits of the prompt are kept, as there

    return step, adapter


def step_figures(subject: Subject) -> Iterator[Figure]:
    """A step of training on a random model against the paper's loop."""
    if subject.shape is None:
        return
    engine = subject.engine
    case = made_up_case(engine.model.config.vocab_size)
    copy = random_model(subject.shape, engine.device, engine.model.dtype, subject.settings.seed)
    paper, _ = paper_step(copy, case)
    for layers, goal in GOALS.items():
        loop, adapter = our_loop(engine.model, layers, case)
        try:
            seconds = interleaved({"ours": timed(loop._evaluate), "theirs": timed(paper)})
            yield Figure(f"training step, {layers} layers, {engine.name}", seconds["ours"], seconds["theirs"], "s", PAPER, goal,
                         note=f"one evaluation of the objective, {TOKENS} tokens of which {COMPLETION} completion")
        finally:
            adapter.remove()
    del copy, paper


def memory_figures(subject: Subject) -> Iterator[Figure]:
    """Peak memory of training a random model, of processes of their own: a few steps, and a whole session."""
    if subject.shape is None:
        return
    theirs = peak(subject, "paper")
    for layers in GOALS:
        ours = peak(subject, layers)
        yield Figure(f"peak memory of training, {layers} layers, random {subject.shape}", ours["peak"], theirs["peak"], "bytes", PAPER, MEMORY_GOAL,
                     repeats=1, note="of the whole process, libraries and weights included")
    with tempfile.TemporaryDirectory() as folder:  # made by one process and loaded by another: making it has a peak of its own
        peak(subject, "save", folder)
        whole = peak(subject, "session", folder)
    yield Figure(f"peak memory of a session while training, random {subject.shape}", whole["peak"], whole["weights"], "bytes",
                 "the bytes of its weights", SESSION_GOAL, repeats=1, note=str(whole["note"]))


def peak(subject: Subject, kind: MemoryKind, folder: str | None = None) -> dict[str, Any]:
    """Peak and weights in bytes of a fresh process that trains as `kind` says."""
    given = {"kind": kind, "shape": subject.shape, "device": subject.settings.device, "dtype": subject.settings.dtype, "folder": folder}
    return measured(given)


def training_figures(subject: Subject) -> Iterator[Figure]:
    """A whole training to acquisition on edits of the demo world, against trl's SFTTrainer on the same."""
    from lawf_repl.bench.peer_trl import train_trl, trl_version

    if not subject.is_demo:
        return
    if trl_version() is None:
        print("lawf: a whole training against trl is left out: trl is not installed (pip install 'lawf-repl[bench]')", file=sys.stderr)
        return
    from lawf_repl.bench.objective import Meter, make_tasks, run_ours, spread
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.measure.prompts import demo_probes

    engine, probes, target_p = subject.engine, demo_probes(subject.engine), subject.settings.target_p
    meter = Meter(engine, probes)
    tasks = make_tasks(engine, spread(load_edits(), EDITS), target_p)
    ours: list[tuple[float, float, float]] = []  # seconds, drift at the same acquisition, drift at the end
    for task in tasks:
        rows = {row.when: row for row in run_ours(engine, meter, task, subject.settings.seed, replace(subject.settings, target_p=target_p), probes)}
        if "equal" in rows:
            ours.append((rows["equal"].seconds, rows["equal"].drift_nats, rows["end"].drift_nats))
    for rate, name, goals in RATES:
        learned = [train_trl(engine, task.case, meter.reference, target_p, rate, subject.settings.seed) for task in tasks]
        theirs = [one for one in learned if one.acquired]
        if not theirs or not ours:
            continue
        note = (f"median of {len(ours)} edits, learned in {len(ours)} and {len(theirs)} of {len(tasks)} cases, "
                f"in {median(one.steps for one in theirs):.0f} steps there")
        peer = f"trl {trl_version()} SFTTrainer, {name}"
        built, whole = median(one.built_s for one in theirs), median(one.built_s + one.trained_s for one in theirs)
        drift = median(one.drift_nats for one in theirs)
        yield Figure(f"whole training to acquisition, demo, {name}", median(one[0] for one in ours), whole, "s", peer, goals[0], repeats=len(ours),
                     note=f"{note}; {built:.2f} s of it are making the trainer")
        yield Figure(f"drift at the same acquisition, demo, {name}", median(one[1] for one in ours), drift, "nats", peer, goals[1],
                     repeats=len(ours), note=note)
        yield Figure(f"drift at our own end, demo, {name}", median(one[2] for one in ours), drift, "nats", peer, repeats=len(ours), note=note)
