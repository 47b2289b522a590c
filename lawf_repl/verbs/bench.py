"""`lawf bench`: the comparisons with peers, as tables or as one JSON object of schema lawf.bench/1."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from importlib.metadata import version

from lawf_repl.config import Settings
from lawf_repl.errors import UsageError
from lawf_repl.verbs.inputs import print_json


def run_bench(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0, or 130 if interrupted: then the rows so far are summed up. Raises UsageError for a model that is not the demo's."""
    if "model" in options:
        raise UsageError("lawf bench objective runs on the planted mistakes of the embedded demo model: leave out --model")
    if "adapter" in options:
        raise UsageError("lawf bench objective trains its own adapters: leave out --adapter")
    settings = replace(settings, model=None, adapter=None)  # whatever the config file names
    for name in ("edits", "seeds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name}: expected a whole number of at least 1, found {getattr(options, name)}")

    from lawf_repl.bench.objective import Row, make_tasks, run, spread, summarize
    from lawf_repl.demo.edits import load_edits
    from lawf_repl.engine.base import load_engine
    from lawf_repl.measure.prompts import demo_probes
    from lawf_repl.ui.bench import summary_table
    from lawf_repl.verbs.story import Story

    edits = spread(load_edits(), options.edits)
    engine = load_engine(settings)
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        print(f"lawf: seed {row.seed}  {row.edit}  {row.recipe} ({row.when}): drift {row.drift_nats:.1e} nats after {row.steps} steps",
              file=sys.stderr, flush=True)

    interrupted = False
    try:
        run(engine, demo_probes(engine), make_tasks(engine, edits, settings.target_p), options.seeds, settings, keep)
    except KeyboardInterrupt:
        interrupted = True
    summaries = summarize(rows)
    if settings.json:
        print_json({"schema": "lawf.bench/1", "bench": "objective", "model": engine.name, "edits": len(edits), "seeds": options.seeds,
                    "complete": not interrupted, "versions": versions(), "threads": threads(),
                    "summaries": [asdict(one) for one in summaries], "rows": [asdict(row) for row in rows]})
    elif summaries:
        story = Story(settings)
        for when in ("equal", "end"):
            story.console.print(summary_table([one for one in summaries if one.when == when], when, story.theme))
            story.console.print()
    return 130 if interrupted else 0


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    return {name: version(name) for name in ("torch", "transformers", "peft")} | {"python": sys.version.split()[0]}


def threads() -> int:
    import torch  # late: the command line starts without it

    return torch.get_num_threads()
