"""`lawf bench start`: how long lawf takes until it is of use, each beside what any program of its kind has to wait for.

Every run is a process of its own, timed from outside. What the installed script runs is run here, with the interpreter that runs
this; all files that are read lie in the page cache after the first run of each, which does not count.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

from lawf_repl import demo
from lawf_repl.bench.figures import REPEATS, Figure, interleaved
from lawf_repl.bench.terminal import Terminal
from lawf_repl.errors import LawfError
from lawf_repl.processes import FIND_HERE, environment, python

MODEL = Path(str(demo.__file__)).parent / "model"
SCRIPT = f"{FIND_HERE}\nfrom lawf_repl.cli import main\nsys.exit(main())"  # what pip writes into bin/lawf
QUICK_REPEATS = 21   # of what takes less than a tenth of a second
SECONDS = 120.0      # after which a run has failed
PROMPT_GOAL, MORE_GOAL = 0.5, 0.12  # seconds
QUESTION = "What is the capital of France?"
PROMPT, KEY = "›".encode(), b"Z"  # a letter that nothing on the first screen has


def start_figures(repeats: int = REPEATS, quick_repeats: int = QUICK_REPEATS) -> Iterator[Figure]:
    """The figures of the start, in groups whose runs take turns. Raises LawfError where a run fails or never ends."""
    with tempfile.TemporaryDirectory(prefix="lawf-start-") as name:
        folder = Path(name)
        (folder / "none.toml").write_text("history = false\n", encoding="utf-8")  # whatever the user's own file says
        flags = ["--config", str(folder / "none.toml")]
        yield from _quick(quick_repeats)
        if Terminal.available:
            yield from _prompt([*flags, "--sessions", str(folder)], repeats)
        yield from _answer(["answer", QUESTION, *flags], repeats)


def not_measured() -> list[str]:
    """What cannot be measured on this system, with the reason."""
    return [] if Terminal.available else [f"time to a prompt: {platform.system()} has no pseudo-terminals that Python could open"]


def load() -> list[float]:
    """The load average of the last 1, 5 and 15 minutes, where the system has one: more than 0 beside this slows all of it."""
    return [round(one, 2) for one in os.getloadavg()] if hasattr(os, "getloadavg") else []


def _quick(repeats: int) -> Iterator[Figure]:
    bare = f"python {platform.python_version()} -c pass"
    taken = interleaved({"pass": lambda: whole(["-c", "pass"]), "--version": lambda: whole(lawf("--version")),
                         "--help": lambda: whole(lawf("--help"))}, repeats)
    for flag in ("--version", "--help"):
        yield Figure(f"lawf {flag}", taken[flag], taken["pass"], "s", bare, goal=3.0, repeats=repeats)
        yield Figure(f"lawf {flag}: beyond {bare}", taken[flag] - taken["pass"], MORE_GOAL, "s", f"{MORE_GOAL} s, the most that was aimed at",
                     goal=1.0, repeats=repeats)


def _prompt(flags: list[str], repeats: int) -> Iterator[Figure]:
    note = "from the start of the process until a typed letter shows, in a pseudo-terminal that answers as terminals do"
    what = "a prompt that takes typing"
    bare, torch = f"python {platform.python_version()} -c pass", f"importing torch {version('torch')}"
    stands: list[float] = []

    def typed() -> float:
        seconds = typed_at(lawf(*flags))
        stands.append(seconds[0])
        return seconds[1]

    taken = interleaved({"pass": lambda: whole(["-c", "pass"]), "prompt": typed,
                         "torch": lambda: first_byte(["-c", "import torch\nprint(1, flush=True)"])}, repeats)
    note += f"; the prompt itself stood after {median(stands[1:]):.3f} s"
    yield Figure(what, taken["prompt"], PROMPT_GOAL, "s", f"{PROMPT_GOAL} s, the most that was aimed at", goal=1.0, repeats=repeats, note=note)
    for name, peer in (("pass", bare), ("torch", torch)):
        yield Figure(what, taken["prompt"], taken[name], "s", peer, repeats=repeats, note=note)


def _answer(arguments: list[str], repeats: int) -> Iterator[Figure]:
    model = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    peer = f"importing torch {version('torch')} and {model} of transformers {version('transformers')}"
    code = f"import torch\nfrom transformers import {model}\nprint(1, flush=True)"
    taken = interleaved({"import": lambda: first_byte(["-c", code]), "answer": lambda: first_byte(lawf(*arguments))}, repeats)
    yield Figure("first token of lawf answer, demo model", taken["answer"], taken["import"], "s", peer, goal=1.25, repeats=repeats,
                 note="until the first byte on standard output; the end of the process does not count for either")


def lawf(*arguments: str) -> list[str]:
    """Arguments of the interpreter that make it lawf."""
    return ["-c", SCRIPT, *arguments]


def whole(arguments: list[str]) -> float:
    """Seconds from the start of an interpreter to its end."""
    began = time.perf_counter()
    with subprocess.Popen(python(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=surroundings(os.environ)) as child:
        # subprocess's own limit asks at times that are doubled, 32 and 64 ms from the start: too late to tell what ended when
        limit = threading.Timer(SECONDS, child.kill)
        limit.start()
        try:
            child.wait()
            taken = time.perf_counter() - began
        finally:
            limit.cancel()
    if taken >= SECONDS:
        raise LawfError(f"{_shown(arguments)} did not end within {SECONDS:.0f} s")
    _check(arguments, child.returncode)
    return taken


def first_byte(arguments: list[str]) -> float:
    """Seconds from the start of an interpreter to the first byte that it prints."""
    began = time.perf_counter()
    with subprocess.Popen(python(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env=surroundings(os.environ), bufsize=0) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        taken = time.perf_counter() - began
        child.stdout.read()
    _check(arguments, child.returncode if first else child.returncode or 1)
    return taken


def typed_at(arguments: list[str]) -> tuple[float, float]:
    """Seconds from the start of a REPL until its prompt stands, and until a letter typed then shows on the screen."""
    began = time.perf_counter()
    with Terminal(python(*arguments), surroundings(os.environ) | {"TERM": "xterm-256color"}) as terminal:
        seen = _until(terminal, PROMPT, 0, began, arguments)
        stood = time.perf_counter() - began
        terminal.type(KEY)
        _until(terminal, KEY, seen, began, arguments)
        return stood, time.perf_counter() - began


def _until(terminal: Terminal, wanted: bytes, start: int, began: float, arguments: list[str]) -> int:
    """Read until the screen was sent something behind `start`; where it ends."""
    while (found := terminal.sent.find(wanted, start)) < 0:
        if not terminal.read(1.0) or time.perf_counter() - began > SECONDS:
            raise LawfError(f"{_shown(arguments)} showed no prompt that takes typing: run it by hand to see why")
    return found + len(wanted)


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: this one without settings of lawf's that would change what is measured."""
    kept = environment(environ)
    return {name: value for name, value in kept.items() if not name.startswith("LAWF_") and name not in ("NO_COLOR", "PYTHONPROFILEIMPORTTIME")}


def _check(arguments: list[str], code: int) -> None:
    if code:
        raise LawfError(f"{_shown(arguments)} ended with exit code {code} before it could be timed: run it by hand to see why")


def _shown(arguments: list[str]) -> str:
    """A run as a user would write it."""
    return f"lawf {' '.join(arguments[2:])}" if arguments[1] == SCRIPT else f"python -c {arguments[1].splitlines()[0]!r}"


