"""Where things are: sessions, config, history, kept answers; and names of sessions, none of which leads out of their folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lawf_repl import store
from lawf_repl.config import default_config_path
from lawf_repl.errors import LawfError, SessionError, UsageError
from lawf_repl.store.disk import clear_errors

LONGEST = 200  # bytes of a session's name: with what lies beside it a file name has 255
FORBIDDEN = frozenset('/\\:*?"<>|')  # of one system or another; a session may be carried to each
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))})


class Place(NamedTuple):
    """A file or folder, which need not exist, and what decided that it is this one."""

    path: Path
    why: str


def sessions_place(given: str | Path | None, environ: Mapping[str, str]) -> Place:
    """The folder of sessions: --sessions, LAWF_SESSIONS, ./sessions if it exists, else the platform's folder for data.

    Raises UsageError where what is named is there and no folder.
    """
    for named, why in ((given, "--sessions"), (environ.get("LAWF_SESSIONS"), "LAWF_SESSIONS")):
        if named:
            path = Path(os.path.expanduser(named)).absolute()
            if os.path.exists(path) and not os.path.isdir(path):
                raise UsageError(f"{why} {named}: expected a folder, found a file; name a folder, it is made where it is missing")
            return Place(path, why)
    here = Path("sessions").absolute()
    if here.is_dir():
        return Place(here, "./sessions exists")
    from platformdirs import user_data_path  # late: most commands do not need it

    return Place(user_data_path("lawf", appauthor=False) / "sessions", "the platform's folder for data")


def all_places(given: str | Path | None, environ: Mapping[str, str]) -> dict[str, Place]:
    """Everything that lawf reads and writes without being given a path."""
    from platformdirs import user_cache_path, user_log_path, user_state_path

    state = "the platform's folder for state"
    return {
        "config": Place(default_config_path(), "the platform's folder for settings; --config names another"),
        "sessions": sessions_place(given, environ),
        "history": Place(user_state_path("lawf") / "history", "LAWF_NO_HISTORY: none is kept" if environ.get("LAWF_NO_HISTORY") else state),
        "answers": Place(user_cache_path("lawf", appauthor=False) / "answers", "the platform's folder for caches"),
        "logs": Place(user_log_path("lawf", appauthor=False), "the platform's folder for logs"),
    }


def check_name(name: str) -> str:
    """A session's name, without .jsonl. Raises UsageError for one that could lead out of the folder, or is no file name everywhere."""
    plain = name.removesuffix(store.SUFFIX)
    if not plain.strip():
        raise UsageError("the name is empty: expected a name such as capital")
    bad = sorted({character for character in plain if character in FORBIDDEN or not character.isprintable()})
    if bad:
        raise UsageError(f"{name!a} is no name for a session: leave out {' '.join(ascii(one) for one in bad[:5])}")
    if plain[0] in ".-" or plain != plain.strip() or plain.endswith(".") or plain.split(".")[0].lower() in RESERVED:
        raise UsageError(f"{name!a} is no name for a session: expected one that begins with a letter or digit, such as capital")
    if len(os.fsencode(plain)) > LONGEST:
        raise UsageError(f"the name has {len(os.fsencode(plain))} bytes: expected at most {LONGEST}")
    return plain


def named(name: str, folder: Path) -> Path:
    """The session of a name in the folder, whether it exists or not. Raises UsageError."""
    return folder / f"{check_name(name)}{store.SUFFIX}"


def typed(text: str, folder: Path) -> Path:
    """What was typed behind /save or /load: a name, or a whole path, from / or ~ on. Raises UsageError for a path that climbs."""
    path = Path(os.path.expanduser(text))
    if not path.is_absolute():
        if os.path.basename(text) != text:
            raise UsageError(f"{text!a} leads out of the folder of sessions: expected a name, or a whole path that begins with / or ~")
        return named(text, folder)
    return path if path.suffix == store.SUFFIX else path.with_name(path.name + store.SUFFIX)


def typed_there(text: str, folder: Path) -> Path:
    """As typed, for a session that has to be there. Raises SessionError where it is not."""
    path = typed(text, folder)
    if not os.path.isfile(path):
        _refuse_unreadable(path)
        raise SessionError(f"no session {path.name.removesuffix(store.SUFFIX)} in {path.parent}: lawf sessions lists them")
    return path


def find_session(text: str, folder: Path) -> Path:
    """The session that a command was given: a path to a file, or a name in the folder. Raises UsageError, SessionError where there is none."""
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path) or os.path.isdir(path):  # which raise nothing, whatever the system says of a name
        return path
    if path.suffix == store.SUFFIX or os.path.basename(text) != text:  # written as a path
        inside = folder / text
        if os.path.basename(text) == text and os.path.isfile(inside):
            return inside
        _refuse_unreadable(path)
        raise SessionError(f"no session at {path}: expected a session file, a folder of them, or a name; lawf sessions lists them")
    inside = named(text, folder)
    if not os.path.isfile(inside):
        _refuse_unreadable(inside)
        raise SessionError(f"no session {text} in {folder}: expected the name of one or a path; lawf sessions lists them")
    return inside


def _refuse_unreadable(path: Path) -> None:
    """Raises SessionError where it is the system that does not let one see what is there."""
    with clear_errors(path, "look at"), suppress(FileNotFoundError, NotADirectoryError, ValueError):
        os.stat(path)


def find_one(text: str, folder: Path) -> Path:
    """As find_session, for a command that takes a single file. Raises SessionError for a folder too."""
    path = find_session(text, folder)
    if path.is_dir():
        raise SessionError(f"{path} is a folder: expected one session file or name; lawf sessions {path} lists what is in it")
    return path


def find_source(path: Path, folder: Path) -> Path:
    """The session of that name in the folder, where a command that takes a session or an adapter was given one; else the path as it is."""
    with suppress(UsageError):  # it is no name
        inside = named(path.name, folder)
        if str(path) == path.name and not os.path.lexists(path) and os.path.isfile(inside):
            return inside
    return path


def find_sessions(texts: Iterable[str], folder: Path) -> list[Path]:
    """The sessions that a command was given, a folder standing for all in it. Raises as find_session, and for a folder without one."""
    found: list[Path] = []
    for text in texts:
        path = find_session(text, folder)
        if path.is_dir():
            inside = sessions_in(path)
            if not inside:
                raise SessionError(f"folder {path} has no session: expected files that end in {store.SUFFIX}")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def find_all(texts: Iterable[str], folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """The sessions, and what is none with the reason: it does not stop the others. Raises SessionError, UsageError where nothing is left."""
    paths: list[Path] = []
    missing: list[tuple[str, str]] = []
    first: LawfError | None = None
    for text in texts:
        try:
            paths += find_sessions([text], folder)
        except LawfError as error:
            first = first or error
            missing.append((text, str(error)))
    if first and not paths:
        raise first
    return list(dict.fromkeys(paths)), missing


def sessions_in(folder: Path) -> list[Path]:
    """Session files of a folder by their names; none where there is no folder. Raises SessionError for one that cannot be read."""
    with clear_errors(folder, "read"), suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in folder.iterdir() if path.suffix == store.SUFFIX and not path.name.startswith(".") and os.path.isfile(path))
    return []


def last_session(folder: Path) -> Path:
    """The session that was written to last. Raises SessionError where there is none."""
    found = sessions_in(folder)
    if not found:
        raise SessionError(f"there is no session in {folder} to go on with: start one with lawf, or name the folder with --sessions")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
