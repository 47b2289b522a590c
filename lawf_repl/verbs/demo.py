"""`lawf demo`: a planted mistake of the embedded model, in the REPL or, without a terminal, corrected by itself."""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import replace
from typing import Any

from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.errors import UsageError
from lawf_repl.verbs.inputs import is_terminal, print_json


def run_demo(options: argparse.Namespace, settings: Settings) -> int:
    """List the mistakes, open the REPL on one, or play its correction. Raises UsageError for an unknown name."""
    edits = load_edits()
    if options.list:
        if settings.json:
            print_json({"schema": "lawf.demo/1", "edits": edits})
        else:
            width = max(len(edit["name"]) for edit in edits)
            for edit in edits:
                print(f"{edit['kind']:<12} {edit['name']:<{width}}  {edit['prompt']}")
        return 0
    if "model" in options:
        raise UsageError("lawf demo plays on the embedded demo model: leave out --model, or use lawf --model")
    settings = replace(settings, model=None)  # whatever the config file names
    edit = pick(edits, options.name)
    if is_terminal(sys.stdin) and is_terminal(sys.stdout) and not settings.json:
        from lawf_repl.verbs.repl import start_repl

        return start_repl(settings, edit, getattr(options, "sessions", None))
    return play(edit, settings)


def pick(edits: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The edit of a name, or the first one; a unique prefix is enough."""
    if name is None:
        return edits[0]
    found = [edit for edit in edits if edit["name"] == name] or [edit for edit in edits if edit["name"].startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is ambiguous: give one of {', '.join(edit['name'] for edit in found[:6])}{', …' * (len(found) > 6)}")
    near = difflib.get_close_matches(name, [edit["name"] for edit in edits], n=1, cutoff=0.5)
    raise UsageError(f"no planted mistake is called {name!r}: see lawf demo --list" + (f" (did you mean {near[0]}?)" if near else ""))


def play(edit: dict[str, Any], settings: Settings) -> int:
    """Correct it from start to end, printing every step; exit code 1 if it was not fixed."""
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import load_probes
    from lawf_repl.session import open_session
    from lawf_repl.verbs.fix import Job, carry_out, outcome_json
    from lawf_repl.verbs.inputs import interruptible
    from lawf_repl.verbs.story import Story

    system = [{"role": "system", "content": settings.system}] if settings.system else []
    job = Job([*system, {"role": "user", "content": edit["prompt"]}], want=edit["right"],
              paraphrases=edit["paraphrases"], neighbours=edit["neighbours"])
    engine = load_engine(settings)
    with interruptible() as stop:
        outcome = carry_out(open_session(engine, settings, load_probes(engine, settings)), job, None if settings.json else Story(settings), stop)
    if settings.json:
        print_json(outcome_json(outcome))
    return 130 if outcome.interrupted else 0 if outcome.fixed else 1
