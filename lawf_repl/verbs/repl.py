"""Starting the REPL: the model loads behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lawf_repl.config import Settings
from lawf_repl.records import Progress
from lawf_repl.ui.app import Options, run_repl
from lawf_repl.ui.keys import Keymap

if TYPE_CHECKING:  # the real import brings torch and would hold the prompt back
    from lawf_repl.session import Session


def start_repl(settings: Settings, edit: dict[str, Any] | None = None) -> int:
    """The REPL, on a planted mistake if one is given."""
    keys = Keymap({str(name): str(value) for name, value in settings.keys})  # a wrong one is named before anything else happens

    def load(report: Callable[[Progress], None]) -> Session:
        from lawf_repl.engine.base import load_engine
        from lawf_repl.measure.prompts import load_probes
        from lawf_repl.session import open_session

        engine = load_engine(settings, report)
        session = open_session(engine, settings, load_probes(engine, settings))
        if edit:
            for text in edit["paraphrases"]:
                session.add_paraphrase(text)
            for text in edit["neighbours"]:
                session.add_neighbour(text)
        return session

    intro = None
    if edit:
        intro = f"The demo model answers this wrongly. It should say: {edit['right']}"
    return run_repl(load, first_prompt=edit["prompt"] if edit else None, intro=intro,
                    options=Options(settings.plain, settings.theme, settings.vi, settings.history, settings.mouse, keys),
                    model_name=settings.model or "the demo model")
