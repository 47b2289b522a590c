"""Example sessions, one for each kind of planted mistake: `python -m lawf_repl.demo.examples sessions` makes them again.

Each asks, corrects, trains with a small adapter, compares and measures, as a user would; `lawf replay sessions` does it again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.demo.edits import load_edits
from lawf_repl.engine.base import Engine, load_engine
from lawf_repl.measure.prompts import load_probes
from lawf_repl.session import open_session

KINDS = ("fact", "field", "instruction", "tool", "term", "identity")
RANK = 2  # half of the default: an example is small enough to lie in a repository


def examples() -> dict[str, dict[str, Any]]:
    """The first planted mistake of each kind, by the name of its file."""
    return {kind: next(edit for edit in load_edits() if edit["kind"] == kind) for kind in KINDS}


def record(engine: Engine, edit: dict[str, Any], path: Path) -> bool:
    """One session with its adapter; whether the prompt is right afterwards. Raises SessionError where something stands there."""
    settings = Settings(rank=RANK)
    session = open_session(engine, settings, load_probes(engine, settings), path)
    try:
        for _ in session.ask(edit["prompt"]):
            pass
        for _ in session.want(edit["right"]):
            pass
        session.accept()
        for text in edit["paraphrases"]:
            session.add_paraphrase(text)
        for text in edit["neighbours"]:
            session.add_neighbour(text)
        for _ in session.train():
            pass
        reruns = session.rerun()
        session.scorecard(reruns)
    finally:
        session.close()
    if session.trouble is not None:
        raise session.trouble
    store.lock_path(path).unlink(missing_ok=True)
    return all(rerun.fixed for rerun in reruns)


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0] if arguments else "sessions")
    folder.mkdir(exist_ok=True)
    engine = load_engine(Settings())
    fixed = True
    for name, edit in examples().items():
        path = folder / f"{name}{store.SUFFIX}"
        store.remove(path)
        fixed &= record(engine, edit, path)
        print(f"{path}  {sum(one.stat().st_size for one in [path, *store.adapter_path(path).iterdir()]) // 1000} kB", flush=True)
    return 0 if fixed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
