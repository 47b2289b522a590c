"""`lawf doctor` and /doctor: versions, devices, memory and what fits into it, folders, the terminal; and what of it is wrong."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawf_repl import __version__
from lawf_repl.config import Settings
from lawf_repl.errors import first_line
from lawf_repl.fits import BYTES, FORMULA, RATIO, largest, what_fits
from lawf_repl.places import all_places
from lawf_repl.verbs.inputs import is_terminal, print_json

if TYPE_CHECKING:
    from lawf_repl.engine.base import Engine
    from lawf_repl.ui.theme import Theme

NEEDED = ("torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate", "huggingface-hub", "jinja2", "rich", "prompt_toolkit")
OPTIONAL = {"bitsandbytes": "quantize", "gguf": "gguf", "llama-cpp-python": "gguf", "plotext": "bench"}  # and the extra that brings it
NOT_INSTALLED = "not installed"


def run_doctor(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 1 where something is wrong. A model is loaded only where --model names one; raises ModelError as loading does."""
    from lawf_repl.verbs.story import Story

    story = Story(settings)
    engine = None
    if "model" in options:
        from lawf_repl.verbs.loading import load_shown

        engine = load_shown(settings)
    found = examine(settings, story.theme, getattr(options, "sessions", None), engine)
    if settings.json:
        print_json({"schema": "lawf.doctor/1", **found})
    else:
        from lawf_repl.ui.doctor import doctor_view

        story.console.print(doctor_view(found, story.theme))
    return 1 if found["problems"] else 0


def examine(settings: Settings, theme: Theme, sessions: Path | None = None, engine: Engine | None = None) -> dict[str, Any]:
    """All that the doctor has to say, as the fields of schema lawf.doctor/1."""
    versions = {"lawf": __version__, "python": platform.python_version(), "system": platform.platform(), **_installed(NEEDED)}
    folders = {name: {"path": str(place.path), "exists": place.path.exists(), "writable": _writable(place.path)}
               for name, place in all_places(sessions, os.environ).items()}
    terminal = _terminal(theme, os.environ)
    problems = [f"{name} is not installed: pip install lawf-repl" for name, found in versions.items() if found == NOT_INSTALLED]
    problems += [f"{name}: {place['path']} cannot be written" for name, place in folders.items() if not place["writable"]]
    if not terminal["unicode"]:
        problems.append(f"the encoding of standard output is {terminal['encoding']}, which has not every sign that lawf shows: set PYTHONUTF8=1")
    machine: dict[str, Any] = {"devices": [], "threads": {"processors": os.cpu_count()}, "decoding": None, "fits": None}
    try:
        machine = _machine(settings, problems)
    except (ImportError, OSError) as error:  # a library of the system that torch needs is missing, for example
        problems.append(f"torch cannot be imported: {first_line(error)}")
    return {"versions": versions, "optional": {name: {"version": found, "extra": OPTIONAL[name]} for name, found in _installed(OPTIONAL).items()},
            **machine, "model": _model(engine), "folders": folders, "terminal": terminal, "problems": problems}


def _machine(settings: Settings, problems: list[str]) -> dict[str, Any]:
    from lawf_repl.engine.machine import device_trouble, devices, threads
    from lawf_repl.engine.native import what_is_at_hand

    found = devices(settings)
    trouble = device_trouble(settings)
    problems += [trouble] if trouble else []
    fits = [{"device": one.device, "free": one.free, "sizes": [asdict(fit) for fit in what_fits(one.free)],
             "largest": {dtype: {use: largest(one.free, dtype, use) for use in RATIO} for dtype in BYTES}} for one in found if one.free is not None]
    return {"devices": [asdict(one) for one in found], "threads": threads(), "decoding": what_is_at_hand(),
            "fits": {"formula": FORMULA, "devices": fits}}


def _model(engine: Engine | None) -> dict[str, Any] | None:
    """What is loaded: its name, class, place, size, and how its cache may be used."""
    if engine is None:
        return None
    weights = {id(parameter): parameter for parameter in engine.model.parameters()}.values()
    return {"name": engine.name, "architecture": type(engine.model).__name__, "device": str(engine.device), "dtype": engine.dtype,
            "parameters": sum(one.numel() for one in weights), "bytes": sum(one.numel() * one.element_size() for one in weights),
            "context": engine.context_length, "cache": engine.cache_kind.mode}


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def _writable(path: Path) -> bool:
    """Whether a file or folder could be written, or made where it is missing."""
    if path.exists():
        return os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0))
    above = next(parent for parent in path.absolute().parents if parent.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _terminal(theme: Theme, environ: Mapping[str, str]) -> dict[str, Any]:
    output = sys.__stdout__  # sys.stdout is a stand-in while a spinner turns
    encoding = output.encoding if output is not None else "none"
    try:
        unicode = bool("›·↵豆".encode(encoding))
    except (LookupError, UnicodeEncodeError):
        unicode = False
    size = os.get_terminal_size(output.fileno()) if output is not None and output.isatty() else None
    return {"input": is_terminal(sys.stdin), "output": size is not None, "TERM": environ.get("TERM", ""),
            "columns": size.columns if size else None, "rows": size.lines if size else None, "encoding": encoding, "unicode": unicode,
            "colours": theme.colour, "background": theme.tone, "plain": theme.plain}
