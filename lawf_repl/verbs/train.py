"""`lawf train`: one adapter from the accepted answers of saved sessions on the same base."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.errors import ExportError, TrainingError
from lawf_repl.export.place import check_place
from lawf_repl.export.run import Exported, Order, export
from lawf_repl.export.source import Known, Source, read_source
from lawf_repl.learn.conflicts import conflicts
from lawf_repl.measure.answers import weights_sha256
from lawf_repl.measure.prompts import load_probes
from lawf_repl.measure.scorecard import Question, answer_text, measure
from lawf_repl.places import find_source, sessions_place
from lawf_repl.records import Rerun, Scorecard, TrainingResult
from lawf_repl.session import RECIPE, Session, Stop, open_session
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.export import base_settings, finding_line, load_base
from lawf_repl.verbs.fix import exhaust, scorecard_json
from lawf_repl.verbs.inputs import interruptible, print_json
from lawf_repl.verbs.story import Story

SAME = ("config_sha256", "tokenizer_sha256", "template_sha256")


@dataclass
class Trained:
    """What came of it."""

    model: str
    sources: Sequence[Source]
    known: Sequence[tuple[Source, Known]]
    training: TrainingResult
    reruns: Sequence[Rerun]
    card: Scorecard
    exported: Exported | None = None  # None where it was interrupted

    @property
    def fixed(self) -> bool:
        return all(rerun.fixed for rerun in self.reruns)


def run_train(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0 if every accepted answer comes out and the written folder is verified, 1 if not, 130 if interrupted."""
    order = Order(options.out, "peft", options.force)
    check_place(order.out, order.force)
    folder = sessions_place(None, os.environ).path
    sources = [read_session(path) for path in dict.fromkeys(find_source(path, folder) for path in options.sessions)]
    same_base(sources)
    known = [(source, one) for source in sources for one in source.known]
    refuse_conflicts(known)
    known = once(known)
    chosen = base_settings(options, settings, sources[0])
    engine = load_base(replace(chosen, adapter=None), sources[0])
    refuse_other(sources[0], engine)
    session = open_session(engine, replace(chosen, adapter=None), load_probes(engine, chosen))
    with interruptible() as stop:
        trained = learn(session, sources, known, None if settings.json else Story(settings), stop)
        if stop():
            print("lawf: interrupted: nothing was written", file=sys.stderr)
            return 130
    assert session.adapter is not None and session.training is not None
    recipe = {name: getattr(session.settings, name) for name in RECIPE} | {"rank": session.adapter.rank_of(next(iter(session.adapter.layers())))}
    source = Source(order.out, None, engine.fingerprint(), tuple(one for _, one in known), recipe, trained.card, weights=weights_sha256(engine.model),
                    template_args=engine.template_args)
    trained.exported = export(engine, session.adapter, source, order, chosen)
    if settings.json:
        print_json(trained_json(trained))
    else:
        show(trained)
    return 0 if trained.exported.ok and trained.fixed else 1


def read_session(path: Path) -> Source:
    """A session with accepted answers. Raises ExportError for anything else."""
    source = read_source(path, with_adapter=False)
    if path.is_dir():
        raise ExportError(f"{path} is an adapter folder: lawf train takes session files, whose answers it trains again")
    if not source.known:
        raise ExportError(f"session {path} has no accepted answer: correct one and accept it, or leave the file out")
    if source.dropped:
        print(f"lawf: {visible(str(path))}: {visible(source.dropped)}", file=sys.stderr)
    return source


def same_base(sources: Sequence[Source]) -> None:
    """Raise TrainingError, by name, for two sessions of different bases."""
    first = sources[0]
    for other in sources[1:]:
        differ = [key.removesuffix("_sha256") for key in SAME if first.base.get(key) != other.base.get(key)]
        comparable = first.weights and other.weights and first.base.get("dtype") == other.base.get("dtype")  # the hash is of one number type
        differ += ["weights"] if comparable and first.weights != other.weights else []
        if differ:  # the same model from two places has two names
            raise TrainingError(f"two sessions have different bases: {first.path} was made on {first.base.get('id')}, {other.path} on "
                                f"{other.base.get('id')} (another {' and '.join(differ)}); one adapter is for one base: train them apart")


def refuse_other(source: Source, engine: Engine) -> None:
    """Raise TrainingError where the model that was loaded is not the sessions' base."""
    found = engine.fingerprint()
    differ = [key.removesuffix("_sha256") for key in SAME if source.base.get(key) and source.base[key] != found[key]]
    comparable = source.weights and source.base.get("dtype") == engine.dtype
    differ += ["weights"] if comparable and source.weights != weights_sha256(engine.model) else []
    if differ:
        raise TrainingError(f"{engine.name} is not the base of {source.path}: another {' and '.join(differ)}; name the right one with --model")


def once(known: Sequence[tuple[Source, Known]]) -> list[tuple[Source, Known]]:
    """Every accepted answer once, with the first session that it is from."""
    out: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Source, Known]] = {}
    for source, one in known:
        out.setdefault((one.case.prompt_ids, one.case.completion_ids), (source, one))
    return list(out.values())


def refuse_conflicts(known: Sequence[tuple[Source, Known]]) -> None:
    """Raise TrainingError with every two answers that ask for different tokens in the same place, by session."""
    found = []
    for (one, first), (other, second) in combinations(known, 2):
        against = list(conflicts([first.case, second.case]))
        found += [f"{one.path} asks for {chosen!r} and {other.path} for {instead!r} in the answer to {prompt!r}"
                  for chosen, instead, prompt in against]
        same = first.case.prompt_ids == second.case.prompt_ids
        if same and not against and first.case.completion_ids != second.case.completion_ids:  # tokens that sampling chose are no anchors
            found.append(f"{one.path} and {other.path} accept different answers to {first.case.prompt!r}")
    if found:
        raise TrainingError(f"{len(found)} contradiction{'s' if len(found) > 1 else ''}: {'; '.join(found)}; leave one of the sessions out")


def learn(session: Session, sources: Sequence[Source], known: Sequence[tuple[Source, Known]], story: Story | None, stop: Stop) -> Trained:
    """Train on all cases, run each again and measure."""
    engine = session.engine
    for _, one in known:
        session.adopt(replace(one.case, accepted=answer_text(engine, one.case.prompt_ids, one.case.completion_ids)), one.messages)
    paraphrases, neighbours = questions(sources)
    for messages, _ in paraphrases:
        session.paraphrases.append(messages[-1]["content"])  # not to be held as variations
    anchors = [anchor for _, one in known for anchor in one.case.anchors]
    if story:
        story.question(session.model_name, f"{len(known)} accepted answer{'' if len(known) == 1 else 's'} of {len(sources)} sessions")
        story.train(anchors, session.train(stop), (session.training for _ in range(1)), session.settings.target_p)
    else:
        exhaust(session.train(stop))
    assert session.training is not None and session.adapter is not None
    reruns = session.rerun(stop)
    session.switch_adapter(True)
    card = measure(engine, session.adapter, reruns, paraphrases, neighbours, session.probes.probes, session.settings.max_tokens, stop)
    if story:
        story.result(reruns, card, anchors)
    return Trained(session.model_name, sources, known, session.training, reruns, card)


def questions(sources: Sequence[Source]) -> tuple[list[Question], list[list[dict[str, str]]]]:
    """Paraphrases with what each session expects of them, and neighbours, in the conversation of the session's last answer."""
    paraphrases: dict[str, Question] = {}
    neighbours: dict[str, list[dict[str, str]]] = {}
    for source in sources:
        lead = source.known[-1].messages[:-1]
        for check in source.scorecard.paraphrases if source.scorecard else ():
            paraphrases[check.prompt] = ([*lead, {"role": "user", "content": check.prompt}], check.expected)
        for check in source.scorecard.neighbours if source.scorecard else ():
            neighbours[check.prompt] = [*lead, {"role": "user", "content": check.prompt}]
    return list(paraphrases.values()), list(neighbours.values())


def show(trained: Trained) -> None:
    """What was verified and how to use it, in lines that can be copied."""
    exported = trained.exported
    assert exported is not None
    print()
    for finding in exported.findings:
        print(finding_line(finding))
    print(f"{'PASS' if exported.ok else 'FAIL'}  {visible(str(exported.out)) if exported.written else 'nothing was written'}")
    for note in exported.notes:
        print(f"note: {visible(note)}")
    for command in exported.commands:
        print(f"  {visible(command)}")


def trained_json(trained: Trained) -> dict[str, Any]:
    """The object of schema lawf.train/1."""
    training, exported = trained.training, trained.exported
    return {"schema": "lawf.train/1", "model": trained.model,
            "sessions": [{"path": str(source.path), "id": source.session, "cases": len(source.known)} for source in trained.sources],
            "cases": [{"prompt": rerun.prompt, "session": str(source.path), "accepted": rerun.accepted, "before": rerun.before.text,
                       "after": rerun.after.text, "fixed": rerun.fixed} for (source, _), rerun in zip(trained.known, trained.reruns, strict=True)],
            "fixed": trained.fixed,
            "training": {"steps": training.steps, "seconds": training.seconds, "stop_reason": training.stop_reason, "loss": training.loss},
            "scorecard": scorecard_json(trained.card), "verified": exported is not None and exported.ok,
            "checks": [{"what": one.what, "ok": one.ok, "detail": one.detail} for one in (exported.findings if exported else ())],
            "adapter": str(exported.out) if exported and exported.written else None}
