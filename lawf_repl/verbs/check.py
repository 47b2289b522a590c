"""`lawf check`: is this the adapter's base, does it do anything, does it still give the accepted answers, what else does it change?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.conversations import read_prompts
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.errors import PromptError
from lawf_repl.export.identity import Finding, effect, match_base, match_file, shapes
from lawf_repl.export.source import Known, Source, check_adapter
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import Pair
from lawf_repl.measure.probes import base_answers, measure_drift
from lawf_repl.measure.prompts import load_probes
from lawf_repl.measure.scorecard import answer_text
from lawf_repl.records import Check, Message, Scorecard
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.export import base_settings, finding_line, load_base, source_of
from lawf_repl.verbs.fix import scorecard_json
from lawf_repl.verbs.inputs import print_json

SHOWN = 20  # changed prompts that are printed; --json has all


@dataclass
class Checked:
    """What `lawf check` found. `changed` are prompts that are answered otherwise, `accepted` the cases with what came out."""

    model: str
    adapter: Path
    findings: list[Finding]
    accepted: list[Check] = field(default_factory=list)
    card: Scorecard | None = None
    changed: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)


def run_check(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0 if base, effect and accepted answers hold, 1 if one does not."""
    source = source_of(options)
    folder = check_adapter(source)
    shapes(folder)
    chosen = base_settings(options, settings, source)
    given = read_prompts(options.prompts, settings.system) if options.prompts else None
    engine = load_base(chosen, source)
    checked = Checked(engine.name, folder, [match_base(source, engine, folder), effect(folder)])
    if source.sha256 is not None:
        checked.findings.append(match_file(source))
    if checked.findings[0].ok:
        measure_all(checked, engine, Adapter.load(engine.model, folder), source, given, chosen)
    if settings.json:
        print_json(checked_json(checked))
    else:
        show(checked)
    return 0 if checked.ok else 1


def measure_all(checked: Checked, engine: Engine, adapter: Adapter, source: Source, given: Sequence[Sequence[Message]] | None,
                settings: Settings) -> None:
    """Fill in accepted answers and the scorecard, on the prompts given or on those that drift is measured on otherwise."""
    adapter.switch(True)
    checked.accepted = [accepted(engine, known, settings) for known in source.known]
    weak = {known.case.prompt for known in source.known if any(anchor.confidence < 1 for anchor in known.case.anchors)}
    wrong = [check for check in checked.accepted if not check.ok]
    if checked.accepted:
        line = f"{len(checked.accepted) - len(wrong)} of {len(checked.accepted)} come out of free generation"
        line += f" ({len(weak)} of them are weak preferences, which need not)" if weak else ""
        checked.findings.append(Finding("accepted answers", all(check.prompt in weak for check in wrong), line))
    recorded = [known for known in source.known if known.base_ids]
    if recorded and source.base.get("dtype") == engine.dtype:
        with adapter.off():
            same = sum(base_as_recorded(engine, known) for known in recorded)
        checked.findings.append(Finding("base answers", same == len(recorded), f"{same} of {len(recorded)} are the recorded ones, token for token"))
    with adapter.off():
        pairs = asked_of_base(engine, given, settings)
    reliability = (len(checked.accepted) - len(wrong)) / len(checked.accepted) if checked.accepted else None
    checked.card = Scorecard(reliability, probes=measure_drift(engine, adapter, pairs) if pairs else None)
    adapter.switch(True)
    texts = {prompt_ids(engine, messages): messages[-1]["content"] for messages in given or ()}
    after = base_answers(engine, [ids for ids, _ in pairs], max((len(ids) for _, ids in pairs), default=1))
    for (ids, before), now in zip(pairs, after, strict=True):
        if now[:len(before)] != list(before):  # where the base was stopped at its limit, what comes behind is not compared
            text = texts.get(tuple(ids)) or engine.tokenizer.hub.decode(list(ids), skip_special_tokens=True)
            checked.changed.append(Check(text, answer_text(engine, ids, before), answer_text(engine, ids, now)))


def asked_of_base(engine: Engine, given: Sequence[Sequence[Message]] | None, settings: Settings) -> list[Pair]:
    """The prompts that are measured on, with the base's answers; the adapter must be off."""
    if given is None:
        prompts = load_probes(engine, settings)
        for _ in prompts.answer():
            pass
        return list(prompts.answered.probes)
    asked = list(dict.fromkeys(prompt_ids(engine, messages) for messages in given))
    answers = base_answers(engine, asked, settings.max_tokens)
    return [(ids, tuple(answer)) for ids, answer in zip(asked, answers, strict=True) if answer]


def accepted(engine: Engine, known: Known, settings: Settings) -> Check:
    """One accepted answer against what free greedy generation gives with the adapter on."""
    case = known.case
    decoder = Decoder(engine)
    ended = bool(case.completion_ids) and case.completion_ids[-1] in engine.end_ids
    length = len(case.completion_ids)
    for _ in decoder.generate(case.prompt_ids, (), Sampling(max(settings.max_tokens, length) if ended else length)):  # cut: as far as it went
        pass
    assert decoder.last is not None
    wanted = answer_text(engine, case.prompt_ids, case.completion_ids)
    got = answer_text(engine, case.prompt_ids, decoder.last.ids)
    return Check(case.prompt, wanted, got if (decoder.last.finish == "eos") == ended or got != wanted else got + " (and on)")


def base_as_recorded(engine: Engine, known: Known) -> bool:
    """Whether the base still answers a corrected prompt as it did when it was corrected; the adapter must be off."""
    assert known.base_ids is not None
    return tuple(base_answers(engine, [known.case.prompt_ids], len(known.base_ids))[0]) == known.base_ids


def prompt_ids(engine: Engine, messages: Sequence[Message]) -> tuple[int, ...]:
    ids = engine.prompt_ids(messages)
    if engine.context_length is not None and len(ids) >= engine.context_length:
        raise PromptError(f"a prompt has {len(ids)} tokens, and with its answer {engine.name} takes {engine.context_length}: shorten it")
    return ids


def show(checked: Checked) -> None:
    """Findings, figures, and what changed."""
    print(f"{visible(str(checked.adapter))} on {visible(checked.model)}")
    for finding in checked.findings:
        print(finding_line(finding))
    for check in checked.accepted:
        if not check.ok:
            print(f"      {visible(check.prompt)}\n      - accepted {visible(check.expected)}\n      + got      {visible(check.got)}")
    probes = checked.card.probes if checked.card else None
    if probes is not None:
        print(f"      drift {probes.drift_nats:.2g} nats a token on {probes.n} prompt{'' if probes.n == 1 else 's'}, "
              f"{probes.flips:.1%} answered otherwise"
              + (f", {probes.near_ties:.1%} more where the base itself was undecided" if probes.near_ties else ""))
    for check in checked.changed[:SHOWN]:
        print(f"      {visible(check.prompt)}\n      - base    {visible(check.expected)}\n      + adapter {visible(check.got)}")
    if len(checked.changed) > SHOWN:
        print(f"      and {len(checked.changed) - SHOWN} more (--json lists all)")
    print("PASS" if checked.ok else "FAIL")


def checked_json(checked: Checked) -> dict[str, Any]:
    """The object of schema lawf.check/1."""
    def rows(checks: Sequence[Check], before: str) -> list[dict[str, Any]]:
        return [{"prompt": check.prompt, before: check.expected, "adapter": check.got} for check in checks]

    return {"schema": "lawf.check/1", "model": checked.model, "adapter": str(checked.adapter), "ok": checked.ok,
            "checks": [{"what": one.what, "ok": one.ok, "detail": one.detail} for one in checked.findings],
            "accepted": rows(checked.accepted, "accepted"), "scorecard": scorecard_json(checked.card or Scorecard()),
            "changed": rows(checked.changed, "base")}
