"""/export: the session's adapter through `lawf export`, in a process of its own, so that the model here stays as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lawf_repl.errors import UsageError
from lawf_repl.processes import environment, module
from lawf_repl.ui import work
from lawf_repl.ui.layout import visible
from lawf_repl.ui.port import SessionPort
from lawf_repl.ui.terminal import Interruptible
from lawf_repl.ui.theme import Theme

FORMATS = ("peft", "merged", "gguf", "ollama", "vllm")
PASSED_ON = ("model", "revision", "dtype", "device")  # what the model was loaded with
SWITCHES = ("trust_remote_code", "offline")
POLL_SECONDS = 0.1
STOP = signal.SIGTERM if sys.platform == "win32" else signal.SIGINT  # as Ctrl-C does: it takes away what it has begun to write


def export(session: SessionPort, argument: str, console: Console, theme: Theme) -> bool:
    """Export as `FORMAT OUT` says and print what `lawf export` does; True if it was verified. Raises UsageError."""
    format_, _, out = argument.strip().partition(" ")
    if format_ not in FORMATS or not out.strip():
        raise UsageError(f"expected /export {'|'.join(FORMATS)} OUT, found {argument!a}")
    place = Path(out.strip()).expanduser()
    if not session.has_adapter:
        raise UsageError("there is no adapter to export: train one first")
    with tempfile.TemporaryDirectory(prefix="lawf-export-") as folder:
        saved = session.save(str(Path(folder) / "session.jsonl"))
        command = module("lawf_repl", "export", saved, str(place), "--format", format_, *flags(session.settings))
        with Interruptible() as stop, work.waiting(f"exporting for {format_}, and loading it again in a fresh process", console, theme):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, encoding="utf-8",
                                       errors="replace", env=environment(os.environ), start_new_session=True)  # Ctrl-C is ours to pass on
            text = _finish(process, stop)
    if stop():
        console.print(Text(f"interrupted: nothing was written to {visible(str(place))}", theme.rich("quiet")))
        return False
    for line in text.splitlines():
        line = line.replace(saved, "this session")
        look = "good" if line.startswith("PASS") else "bad" if line.startswith(("FAIL", "NOT VERIFIED", "lawf:")) else "sure"
        copied = line.startswith("  ")  # a command: the terminal wraps it, so that it is copied whole
        console.print(Text(visible(line), theme.rich(look), overflow="fold"), soft_wrap=copied)
    passed = process.returncode == 0
    session.record_export(format_, str(place.absolute()), passed)
    return passed


def _finish(process: subprocess.Popen[str], stop: Interruptible) -> str:
    while True:
        try:
            text, _ = process.communicate(timeout=POLL_SECONDS)
            return text
        except subprocess.TimeoutExpired:
            if stop():
                process.send_signal(STOP)
                text, _ = process.communicate()
                return text


def flags(settings: Any) -> list[str]:
    """What `lawf export` needs to load the same model."""
    out = [part for name in PASSED_ON if (value := getattr(settings, name, None)) not in (None, "auto")
           for part in (f"--{name}", str(value))]
    return out + [f"--{name.replace('_', '-')}" for name in SWITCHES if getattr(settings, name, False)]
