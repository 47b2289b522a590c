"""Python processes beside this one: they run this very lawf, wherever it was found, and nothing of the folder that the user is in.

Python looks for modules in the current folder first where it is started with -m or -c: a random.py there, of the user's or of whoever
gave the folder to the user, would be run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Takes lawf_repl from where this one lies, and leaves the rest of the path as every Python has it.
FIND_HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r}); import lawf_repl; sys.path.pop(0)"
PROGRAM = f"{FIND_HERE}; import runpy; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def python(*arguments: str) -> list[str]:
    """A command that starts the interpreter that runs this; with -P, neither the current folder nor a script's own stand for modules."""
    return [sys.executable, "-P", *arguments]


def module(name: str, *arguments: str) -> list[str]:
    """A command that runs a module of this lawf as `python -m` does."""
    return python("-c", PROGRAM, name, *arguments)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a process: without empty entries of PYTHONPATH, which mean the current folder."""
    paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {name: value for name, value in environ.items() if name != "PYTHONPATH"} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
