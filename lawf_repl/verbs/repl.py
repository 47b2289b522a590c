"""Starting the REPL: the model loads behind it, and whatever happens is saved."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lawf_repl import store
from lawf_repl.config import Settings
from lawf_repl.digest import read_digest
from lawf_repl.errors import LawfError, SessionError, UsageError
from lawf_repl.places import last_session, sessions_in, sessions_place, typed_there
from lawf_repl.records import Progress
from lawf_repl.ui.app import Options, run_repl
from lawf_repl.ui.keys import Keymap
from lawf_repl.ui.layout import visible
from lawf_repl.ui.port import SessionPort
from lawf_repl.ui.theme import Theme

if TYPE_CHECKING:  # the real import brings torch and would hold the prompt back
    from rich.console import RenderableType

    from lawf_repl.session import Session

Report = Callable[[Progress], None]
NAMES = 50  # of sessions that completion offers


def start_repl(settings: Settings, edit: dict[str, Any] | None = None, sessions: Path | None = None, resume: bool = False,
               given: Collection[str] = ()) -> int:
    """The REPL, on a planted mistake if one is given, or where the last session ended; `given` names the settings that are flags."""
    keys = Keymap({str(name): str(value) for name, value in settings.keys})  # a wrong one is named before anything else happens
    folder = sessions_place(sessions, os.environ).path
    shelf = Shelf(folder, settings, frozenset(given))
    path = last_session(folder) if resume else None
    if path is not None:
        shelf.refuse_broken(path)
    intro = None
    if edit:
        intro = f"The demo model answers this wrongly. It should say: {edit['right']}"
    elif path is not None:
        intro = f"Going on with {path}"
    try:
        return run_repl(lambda report: cast(SessionPort, shelf.resume(path, report) if path is not None else shelf.begin(edit, report)),
                        first_prompt=edit["prompt"] if edit else None, intro=intro,
                        options=Options(settings.plain, settings.theme, settings.vi, settings.history, settings.mouse, keys),
                        model_name=settings.model or "the demo model", extras={"load": shelf.load, "replay": shelf.replay, "doctor": shelf.doctor},
                        saved=shelf.names, answered=make_ready)
    finally:
        shelf.close()


def make_ready() -> None:
    """Import what the first training needs, while the first answer is read."""
    def load() -> None:
        import peft  # noqa: F401

    threading.Thread(target=load, name="lawf-peft", daemon=True).start()


class Shelf:
    """The sessions of one run of the REPL: one is open, it is saved in a folder, and another can take its place."""

    def __init__(self, folder: Path, settings: Settings, given: frozenset[str]) -> None:
        self.folder, self.settings, self.given = folder, settings, given
        self.session: Session | None = None
        self._offers: dict[tuple[Path, int], tuple[str, str]] = {}  # by file and time of its last change: reading takes a moment

    def names(self) -> list[tuple[str, str]]:
        """The sessions that were written to last, each with its day and prompt, newest first; what cannot be read is left out."""
        times, found = [], []
        for path in sessions_in(self.folder):
            with suppress(OSError):  # gone meanwhile
                times.append((path.stat().st_mtime_ns, path))
        for changed, path in sorted(times, reverse=True)[:NAMES]:
            with suppress(LawfError):
                if (path, changed) not in self._offers:
                    row = read_digest(path)
                    self._offers[path, changed] = row.name, f"{row.changed[:10]}  {row.prompt}"
                found.append(self._offers[path, changed])
        return found

    def begin(self, edit: dict[str, Any] | None, report: Report) -> Session:
        """A new session, saved from its first question on."""
        from lawf_repl.engine.base import load_engine
        from lawf_repl.measure.prompts import load_probes
        from lawf_repl.session import open_session

        engine = load_engine(self.settings, report)
        self.session = session = open_session(engine, self.settings, load_probes(engine, self.settings))
        for text in edit["paraphrases"] if edit else ():
            session.add_paraphrase(text)
        for text in edit["neighbours"] if edit else ():
            session.add_neighbour(text)
        session.keep_in(self.folder)
        return session

    def resume(self, path: Path, report: Report) -> Session:
        """A saved session on the model that it was made with, unless flags name another."""
        from lawf_repl.engine.base import load_engine
        from lawf_repl.measure.prompts import load_probes
        from lawf_repl.restore import recorded, restore

        chosen = replace(recorded(store.load(path), self.settings, self.given), adapter=None)
        engine = load_engine(chosen, report)
        self.session = restore(path, engine, chosen, load_probes(engine, chosen), self.given)
        return self.session

    def refuse_broken(self, path: Path) -> None:
        """Raise SessionError before the REPL starts."""
        store.load(path)

    def load(self, port: SessionPort, argument: str, stop: Callable[[], bool], theme: Theme) -> tuple[SessionPort, RenderableType]:
        """/load: another session takes the place of this one, which stays as it is where that fails."""
        from rich.text import Text

        from lawf_repl.restore import restore
        from lawf_repl.session import AT_START

        session = cast("Session", port)
        if not argument.strip():
            raise UsageError("expected /load NAME; lawf sessions lists them")
        if session.trouble is not None:
            raise SessionError(f"this session is not saved: {session.trouble}; /save NAME writes it elsewhere first")
        path = typed_there(argument.strip(), self.folder)
        if path == session.place:
            raise UsageError(f"{path} is the session that is open")
        back = session.set_aside()
        try:
            other = restore(path, session.engine, replace(session.settings, adapter=None), session.probes, self.given | AT_START)
        except BaseException:
            back()
            raise
        session.close()
        self.session = other
        lines = [f"opened {path}: {len(other.nodes)} answers, {len(other.cases)} accepted", *other.notes]
        return cast(SessionPort, other), Text("\n").join(Text(visible(line), theme.rich("quiet")) for line in lines)

    def replay(self, port: SessionPort, argument: str, stop: Callable[[], bool], theme: Theme) -> tuple[SessionPort, RenderableType]:
        """/replay: what happened so far once more, held against the file."""
        from lawf_repl.agreement import TIE
        from lawf_repl.replay import replay, settings_for
        from lawf_repl.session import AT_START
        from lawf_repl.ui.replay import row_view

        session = cast("Session", port)
        if argument.strip() not in ("", "--retrain"):
            raise UsageError(f"expected /replay [--retrain], found {argument!a}")
        if session.place is None:
            raise UsageError("nothing to replay yet: type a prompt first")
        loaded = store.load(session.place)
        back = session.set_aside()
        try:
            row = replay(session.place, session.engine, settings_for(loaded, session.settings, sorted(self.given | AT_START)), session.probes,
                         bool(argument.strip()), stop, loaded)
        finally:
            back()
        return port, row_view(row, theme, TIE)

    def doctor(self, port: SessionPort, argument: str, stop: Callable[[], bool], theme: Theme) -> tuple[SessionPort, RenderableType]:
        """/doctor: what `lawf doctor` says, with the model that is loaded."""
        from lawf_repl.ui.doctor import doctor_view
        from lawf_repl.verbs.doctor import examine

        session = cast("Session", port)
        return port, doctor_view(examine(session.settings, theme, self.folder, session.engine), theme)

    def close(self) -> None:
        """Leave; what could not be saved is said."""
        if self.session is not None:
            self.session.close()
            if self.session.trouble is not None:
                print(f"lawf: the session is not saved whole: {visible(str(self.session.trouble))}", file=sys.stderr)
