"""A process that runs a scripted session on a tiny model again and again, in children that it kills: `python -m tests.scripted_session DIR N SEED`.

Prints a JSON line for each child: its number, the phase in which it was killed, and how many events had been written by then.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.session import Session
from lawf_repl.store import SessionFile
from tests.conftest import make_byte_tokenizer, make_tiny_model

PHASES = ("start", "generation", "correction", "training", "adapter", "export", "naming")
SETTINGS = Settings(max_tokens=5, max_steps=2, variations=0, rounds=1, rank=1, target_p=0.5)
Mark = Callable[[str], None]


def script(session: Session, folder: Path, name: str, mark: Mark) -> None:
    """Two prompts are asked, corrected and trained; the session is named in between, and the adapter exported."""
    keep = session._keep_adapter

    def keep_adapter() -> None:
        mark("adapter")
        keep()

    session._keep_adapter = keep_adapter  # type: ignore[method-assign]
    session.journal.keep_in(folder)
    for number, prompt in enumerate(("What is it?", "And that?")):
        mark("generation")
        run(session.ask(prompt))
        mark("correction")
        run(session.replace(1, "z"))
        run(session.replace(2, "y"))
        session.accept()
        mark("training")
        run(session.train())
        mark("export")
        session.save_adapter(str(folder / f"{name}-export-{number}"))
        mark("naming")
        session.name(f"{name}-named-{number}")
    mark("generation")
    session.rerun()


def tiny() -> Engine:
    """One layer: a run of the script is to be short."""
    model = make_tiny_model()
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return Engine(model, make_byte_tokenizer(), "tiny")


def run(tokens: Iterator[Any]) -> None:
    for _ in tokens:
        pass


class Board:
    """Where a child says how far it is: a page of memory that it shares with its parent."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 16)

    def clear(self) -> None:
        self._page[:] = bytes(16)

    def mark(self, phase: str) -> None:
        self._page[0], self._page[1] = PHASES.index(phase), (self._page[1] + 1) % 256

    def wrote(self) -> None:
        self._page[2] += 1

    @property
    def phase(self) -> str:
        return PHASES[self._page[0]]

    @property
    def marks(self) -> int:
        """How many phases have begun."""
        return self._page[1]

    @property
    def written(self) -> int:
        return self._page[2]


def child(engine: Engine, folder: Path, name: str, board: Board) -> None:
    write = SessionFile.write

    def counted(file: SessionFile, event: dict[str, Any]) -> None:
        write(file, event)
        board.wrote()

    SessionFile.write = counted  # type: ignore[assignment,method-assign]
    script(Session(engine, SETTINGS), folder / name, name, board.mark)


def main(folder: Path, count: int, seed: int) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork, neither OpenMP's
    os.environ["OMP_NUM_THREADS"] = "1"  # nor lawf's,
    tqdm.monitor_interval = 0  # and a lock that one held at that moment is never given back: the child would wait for ever;
    tqdm.set_lock(threading.RLock())  # as all later ones would for tqdm's own lock, which processes share, after one was killed with it
    chance, board = random.Random(seed), Board()
    engine = tiny()
    with tempfile.TemporaryDirectory() as first:  # what is imported and compiled on the way is so once, and not in every child
        script(Session(tiny(), SETTINGS), Path(first), "first", lambda phase: None)
    by_phase: list[list[int]] = []
    seconds: dict[int, float] = {}  # of each phase, by its number in the script: from the first run, which nobody kills
    for number in range(count + 1):
        board.clear()
        name = f"s{number}"
        (folder / name).mkdir()
        assert threading.active_count() == 1, threading.enumerate()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                child(engine, folder, name, board)
                code = 0
            finally:
                os._exit(code)
        if number:
            victim = chance.choice(by_phase[number % len(by_phase)])
            while board.marks < victim and not ended(pid):
                time.sleep(0.0002)
            time.sleep(chance.uniform(0, seconds[victim]))
            phase, written = board.phase, board.written
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            print(json.dumps({"name": name, "phase": phase, "written": written}), flush=True)
            continue
        begun, phases = {0: time.perf_counter()}, {0: "start"}
        while not ended(pid):
            if board.marks not in begun:
                begun[board.marks], phases[board.marks] = time.perf_counter(), board.phase
            time.sleep(0.0001)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, "the script has to reach its end where nobody kills it"
        times = [*begun.items(), (-1, time.perf_counter())]
        seconds = {mark: later - at for (mark, at), (_, later) in itertools.pairwise(times)}
        by_phase = [[mark for mark in seconds if phases[mark] == phase] for phase in PHASES[1:]]
        print(json.dumps({"name": name, "phase": "end", "written": board.written, "seconds": sum(seconds.values())}), flush=True)


def ended(pid: int) -> bool:
    """Whether a child is gone; it stays a zombie until it is reaped, so that its number is nobody else's."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
