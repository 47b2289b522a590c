"""`lawf fix`: the whole job without a hand. Answer, correct, train, rerun, measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.errors import NothingToFix, UsageError
from lawf_repl.measure.prompts import load_probes
from lawf_repl.records import Anchor, Check, Message, Node, Rerun, Scorecard, Token, TrainingResult
from lawf_repl.session import Session, never, open_session, refuse_existing
from lawf_repl.ui.tree import sampled_text
from lawf_repl.verbs.inputs import interruptible, print_json, read_prompt
from lawf_repl.verbs.loading import load_shown
from lawf_repl.verbs.story import Story

Stop = Callable[[], bool]


@dataclass
class Job:
    """What is to be corrected, and how it is checked."""

    messages: Sequence[Message]
    fixes: Sequence[tuple[str, str]] = ()   # (OLD, NEW) in order
    want: str | None = None                 # or the whole right answer
    paraphrases: Sequence[str] = ()
    neighbours: Sequence[str] = ()
    session_file: Path | None = None
    adapter_out: Path | None = None


@dataclass
class Outcome:
    """What came of a job; `training` is None where there was nothing to fix."""

    prompt: str
    before: str
    accepted: str
    after: str
    fixed: bool
    interrupted: bool = False
    anchors: Sequence[Anchor] = ()
    completion_tokens: int = 0
    training: TrainingResult | None = None
    card: Scorecard = field(default_factory=Scorecard)
    session_file: str | None = None
    adapter: str | None = None


def run_fix(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0 if the prompt gives the accepted answer afterwards, 1 if not, 130 if interrupted."""
    fixes = [split_fix(text) for text in options.fix or []]
    if options.want is not None and not options.want.strip():
        raise UsageError("--want is empty: give the whole right answer")
    messages = read_prompt(options.prompt, options.messages, settings.system)
    job = Job(messages, fixes, options.want, options.paraphrase, options.neighbour, options.session, options.adapter_out)
    check_outputs(job)
    engine = load_shown(settings)
    session = open_session(engine, settings, load_probes(engine, settings), job.session_file)
    for note in session.notes:
        print(f"lawf: {note}", file=sys.stderr)
    try:
        with interruptible() as stop:
            outcome = carry_out(session, job, None if settings.json else Story(settings), stop)
    finally:
        session.journal.close()
    if settings.json:
        print_json(outcome_json(outcome))
    if session.trouble is not None:
        raise session.trouble  # last: the work itself is done
    return 130 if outcome.interrupted else 0 if outcome.fixed else 1


def split_fix(text: str) -> tuple[str, str]:
    """OLD and NEW of 'OLD=>NEW'. Raises UsageError."""
    old, arrow, new = text.partition("=>")
    if not arrow:
        raise UsageError(f"--fix {text!r}: expected 'OLD=>NEW', found no =>")
    if not old and not new:
        raise UsageError("--fix '=>': expected text before or behind the =>")
    return old, new


def check_outputs(job: Job) -> None:
    """Refuse outputs that exist before any work is done. Raises SessionError."""
    for path in (job.adapter_out, store.adapter_path(job.session_file) if job.session_file else None):
        if path is not None:
            refuse_existing(path)


def carry_out(session: Session, job: Job, story: Story | None, stop: Stop) -> Outcome:
    """Do the job, telling `story` if there is one. What was collected is in the session, whatever is raised."""
    prompt = job.messages[-1]["content"]
    exhaust(session.ask(job.messages, stop))
    assert session.node is not None
    before = session.node.completion
    if story:
        story.question(session.model_name, prompt)
        story.answer(before)
    outcome = Outcome(prompt, before.text, before.text, before.text, False, session_file=str(job.session_file) if job.session_file else None)
    reason = "nothing to fix: no token was corrected"
    for correct in corrections(session, job, stop):
        if stop():
            return replace(outcome, interrupted=True)
        try:
            exhaust(correct())
        except NothingToFix as nothing:
            reason = str(nothing)  # the others may still have something to do
    outcome.accepted = session.node.completion.text
    if stop():
        return replace(outcome, interrupted=True)
    try:
        case = session.accept()
    except NothingToFix:
        print(f"lawf: {reason}", file=sys.stderr)
        return replace(outcome, fixed=outcome.accepted == before.text, completion_tokens=len(session.node.completion.tokens))
    if sampled := session.sampled():
        print(f"lawf: {sampled_text(sampled)}", file=sys.stderr)
    if story:
        tell_corrections(session, story)
    outcome.anchors, outcome.completion_tokens = case.anchors, len(case.completion_ids)
    return learn(session, job, story, stop, outcome)


def corrections(session: Session, job: Job, stop: Stop) -> Iterator[Callable[[], Iterator[Token]]]:
    if job.want is not None:
        want = job.want
        yield lambda: session.want(want, stop)
    for old, new in job.fixes:
        yield lambda old=old, new=new: session.fix(old, new, stop)  # type: ignore[misc]


def tell_corrections(session: Session, story: Story) -> None:
    assert session.node is not None
    story.heading("corrected")
    path: list[Node] = []
    node: Node | None = session.node
    while node is not None and node.correction is not None:
        path.append(node)
        node = session.nodes[node.parent] if node.parent is not None else None
    for step in reversed(path):
        story.correction(step)
    story.answer(session.node.completion, session.node.fix_positions)
    story.anchors(session.anchors())


def learn(session: Session, job: Job, story: Story | None, stop: Stop, outcome: Outcome) -> Outcome:
    """Train, run again, measure and save; fills `outcome`. Where the training was interrupted, the prompt alone is run again."""
    for text in job.paraphrases:
        session.add_paraphrase(text)
    for text in job.neighbours:
        session.add_neighbour(text)
    if story:
        story.console.print()
        story.train(outcome.anchors, session.train(stop), (session.training for _ in range(1)), session.settings.target_p)
    else:
        exhaust(session.train(stop))
    assert session.training is not None
    outcome.training, outcome.interrupted = session.training, session.training.stop_reason == "interrupted"
    if outcome.interrupted and not outcome.training.steps:
        print("lawf: interrupted before the first step: nothing was trained, and nothing is measured", file=sys.stderr)
        return outcome
    save_adapter(session, job, outcome)  # before measuring: what was trained must not be lost
    reruns = session.rerun(never if outcome.interrupted else stop)  # the Ctrl-C that ended the training would end the answers too
    outcome.card = session.scorecard(reruns, stop)
    outcome.after, outcome.fixed = reruns[-1].after.text, reruns[-1].fixed
    outcome.interrupted |= stop()
    if story:
        tell_result(story, reruns, outcome)
    return outcome


def save_adapter(session: Session, job: Job, outcome: Outcome) -> None:
    if session.place is not None and not session.unsaved:  # it was saved with the training
        outcome.adapter = str(store.adapter_path(session.place))
    if job.adapter_out is not None:
        outcome.adapter = session.save_adapter(str(job.adapter_out))
        session.record_adapter(job.adapter_out)


def tell_result(story: Story, reruns: Sequence[Rerun], outcome: Outcome) -> None:
    story.console.print()
    story.result(reruns, outcome.card, outcome.anchors)
    if outcome.session_file:
        story.line(f"session: {outcome.session_file}")
    if outcome.adapter:
        story.line(f"adapter: {outcome.adapter}")


def exhaust(tokens: Iterator[Any]) -> None:
    """Let a verb run to its end."""
    for _ in tokens:
        pass


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The object of schema lawf.fix/1. What was not measured has n 0 and null for its figures."""
    training = outcome.training
    after = training.anchor_p if training else ()
    return {
        "schema": "lawf.fix/1", "prompt": outcome.prompt, "before": outcome.before, "accepted": outcome.accepted, "after": outcome.after,
        "fixed": outcome.fixed,
        "anchors": [{"position": a.position, "rejected": a.rejected, "chosen": a.chosen, "rejected_id": a.rejected_id, "chosen_id": a.chosen_id,
                     "confidence": a.confidence, "p_ref": a.p_ref, "p_after": p} for a, p in zip(outcome.anchors, after, strict=False)],
        "completion_tokens": outcome.completion_tokens,
        "training": None if training is None else {"steps": training.steps, "seconds": training.seconds, "stop_reason": training.stop_reason,
                                                   "loss": training.loss},
        "scorecard": scorecard_json(outcome.card),
        "session": outcome.session_file, "adapter": outcome.adapter,
    }


def scorecard_json(card: Scorecard) -> dict[str, Any]:
    """A scorecard as the schemas have it."""
    probes = card.probes
    return {"reliability": card.reliability, "generality": exact(card.paraphrases), "locality": exact(card.neighbours),
            "probes": {"n": probes.n if probes else 0, "drift_nats": probes.drift_nats if probes else None,
                       "flips": probes.flips if probes else None}}


def exact(checks: Sequence[Check]) -> dict[str, int | None]:
    """How many of n checks gave exactly the expected text."""
    return {"n": len(checks), "exact": sum(check.ok for check in checks) if checks else None}
