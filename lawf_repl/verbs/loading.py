"""Loading a model for a command: with a progress bar on standard error where that is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lawf_repl import records
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine, load_engine
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import is_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


def load_shown(settings: Settings, console: Console | None = None) -> Engine:
    """The engine that the settings name. Raises ModelError as load_engine does."""
    if settings.plain or (console is None and not is_terminal(sys.stderr)):
        return load_engine(settings)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    bars: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), console=console, transient=True) as progress:
        def report(one: records.Progress) -> None:
            name = visible(one.what)
            if name not in bars:
                bars[name] = progress.add_task(name, total=one.of)
            progress.update(bars[name], completed=one.done, total=one.of)

        return load_engine(settings, report)
