"""The file of results that a benchmark appends to: a Markdown section for each run, with its date, machine and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lawf_repl.errors import UsageError
from lawf_repl.ui.bench import quantity

if TYPE_CHECKING:
    import torch

    from lawf_repl.bench.figures import Figure

UNMEASURED = "not measured"
HEAD = f"""# How fast lawf is

Written by `lawf bench speed --results FILE`: each section is one run, each ratio was measured in that run, ours against the peer's, the two
taking turns, as medians. What carries over to another machine is the ratio.

## On an accelerator

{UNMEASURED}

"""


def check_results(path: Path) -> None:
    """Raise UsageError now, and not after minutes of measuring, where results could not be appended to `path`."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--results {path}: expected a file in a folder that exists; make the folder first, or name another file")


def append_results(path: Path, command: str, figures: Sequence[Figure], device: str, about: Mapping[str, object]) -> None:
    """Append a section; `device` is where it ran, as torch names it, `about` what else was said of the run. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else HEAD
        if device != "cpu":  # measured now
            text = text.replace(f"\n{UNMEASURED}\n", "\nbelow, by their devices\n")
        path.write_text(text.rstrip("\n") + "\n\n" + section(command, figures, about), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--results {path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def section(command: str, figures: Sequence[Figure], about: Mapping[str, object]) -> str:
    """A run as Markdown."""
    lines = [f"## {datetime.now(UTC):%Y-%m-%d}, `{command}`", "", *(f"- {name}: {_plain(value)}" for name, value in about.items()), "",
             "| what | ours | peer | the peer | ratio | goal | runs | |", "|---|---|---|---|---|---|---|---|"]
    for one in figures:
        goal = "" if one.goal is None else f"{'at most' if one.better == 'lower' else 'at least'} {one.goal:g}: {'met' if one.reached else 'missed'}"
        ours, theirs = (quantity(value, one.unit) for value in (one.ours, one.theirs))
        cells = (one.what, ours, theirs, one.peer, f"{one.ratio:.3g}", goal, str(one.repeats), one.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def device_name(device: torch.device) -> str:
    """What the model ran on, by the name that its maker gave it, as far as the system tells."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{device.type}, {name or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def load() -> str:
    """How many processes wanted to run in the last minute, ours included: above the number of cores a figure is of a busy machine."""
    try:
        return f"{os.getloadavg()[0]:.1f} processes before it began"
    except (OSError, AttributeError):
        return "unknown"
