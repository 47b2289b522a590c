"""Mend every planted mistake of the demo model, each on its own: `python -m lawf_repl.demo.mend` (about six minutes on 2 cores).

Prints one row an edit and the means: fixed, drift and flips on the probes, paraphrases and neighbours, steps and seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.engine.base import Engine, load_engine
from lawf_repl.learn.batch import Pair
from lawf_repl.measure.probes import ProbeSet, Reference
from lawf_repl.measure.prompts import demo_probes
from lawf_repl.records import Check, Rerun, Scorecard, TrainingResult
from lawf_repl.session import Session


@dataclass(frozen=True)
class Mended:
    """What came of one edit."""

    name: str
    kind: str
    anchors: int
    rerun: Rerun
    card: Scorecard
    training: TrainingResult


def mend(engine: Engine, reference: Reference, replay: tuple[Pair, ...], edit: dict[str, Any], settings: Settings) -> Mended:
    """Ask, correct toward the whole right answer, train, rerun and measure; the engine is left without an adapter."""
    session = Session(engine, settings, ProbeSet((), replay))
    for _ in session.ask(edit["prompt"]):
        pass
    for _ in session.want(edit["right"]):
        pass
    case = session.accept()
    for text in edit["paraphrases"]:
        session.add_paraphrase(text)
    for text in edit["neighbours"]:
        session.add_neighbour(text)
    for _ in session.train():
        pass
    assert session.training is not None
    reruns = session.rerun()
    card = replace(session.scorecard(reruns), probes=reference.measure())
    mended = Mended(edit["name"], edit["kind"], len(case.anchors), reruns[0], card, session.training)
    session.reset_adapter()
    return mended


def mend_all(engine: Engine, settings: Settings, on_each: Callable[[Mended], None] = lambda _: None) -> list[Mended]:
    """Every edit of edits.json in turn. What the base says of the probes is the same for all, and asked once."""
    probes = demo_probes(engine)
    reference, out = Reference(engine, probes.probes), []
    for edit in load_edits():
        out.append(mend(engine, reference, probes.replay, edit, settings))
        on_each(out[-1])
    return out


def share(mended: list[Mended], which: str) -> float:
    """Share of all paraphrases or neighbours that held."""
    checks: list[Check] = [check for one in mended for check in getattr(one.card, which)]
    return sum(check.ok for check in checks) / len(checks)


def main() -> int:
    print(f"{'edit':<44} anchors fixed steps seconds  drift    flips  paraphrases neighbours")

    def row(one: Mended) -> None:
        held = [f"{sum(c.ok for c in checks)}/{len(checks)}" for checks in (one.card.paraphrases, one.card.neighbours)]
        assert one.card.probes is not None
        print(f"{one.name:<44} {one.anchors:>7} {'yes' if one.rerun.fixed else 'NO':>5} {one.training.steps:>5} {one.training.seconds:>7.1f} "
              f"{one.card.probes.drift_nats:>8.1e} {one.card.probes.flips:>6.2%} {held[0]:>11} {held[1]:>10}", flush=True)

    found = mend_all(load_engine(Settings()), Settings(), row)
    probes = [one.card.probes for one in found if one.card.probes]
    print(f"\n{sum(one.rerun.fixed for one in found)} of {len(found)} fixed; drift mean {mean(p.drift_nats for p in probes):.1e}, "
          f"median {median(p.drift_nats for p in probes):.1e}, largest {max(p.drift_nats for p in probes):.1e} nats; flips mean "
          f"{mean(p.flips for p in probes):.2%}; paraphrases {share(found, 'paraphrases'):.1%}; neighbours {share(found, 'neighbours'):.1%}; "
          f"training median {median(one.training.seconds for one in found):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
