"""The adapters of a session: folders beside its file, never half-written, found again by their content.

NAME.adapter/ is the newest. The one that it takes the place of stays as NAME.adapter.HASH/, so that the session's earlier
trainings can be gone back to. A killed process leaves the old one, the new one, or both under one of these names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from lawf_repl.errors import SessionError
from lawf_repl.store.disk import adapter_path, beside, clear_errors, directory_sha256, remove_lock, sync_directory, sync_tree, temporary
from lawf_repl.store.lines import Event

SHOWN = 12  # characters of the hash in the name of an earlier adapter


def keep_adapter(path: Path, write: Callable[[Path], object]) -> str:
    """Makes what `write` puts into a folder the adapter of the session at `path`; gives its sha256. Raises SessionError.

    Where it fails, the adapter that was there is still there.
    """
    target = adapter_path(Path(os.path.realpath(path)))
    new = temporary(target)
    try:
        with clear_errors(target, "write the adapter to"):
            new.mkdir(mode=0o700)
            write(new)
            sync_tree(new)
            sha256 = directory_sha256(new)
            if target.exists():
                before = directory_sha256(target)
                if before == sha256:
                    return sha256
                earlier = _earlier(target, before)
                shutil.rmtree(target) if earlier.exists() else os.rename(target, earlier)
            os.rename(new, target)
            sync_directory(target.parent)
            return sha256
    finally:
        shutil.rmtree(new, ignore_errors=True)  # where all went well it has its name


def find_adapter(path: Path, event: Event, names: Iterable[str] = ()) -> Path | None:
    """The folder that an adapter event of the session at `path` speaks of, by its content; None where it is not there.

    `names` are what the session was called before (`former_names`).
    """
    recorded, sha256 = event.get("path"), event.get("sha256")
    if not isinstance(recorded, str) or not isinstance(sha256, str):
        return None
    if os.path.isabs(recorded):
        candidates = [Path(recorded)]
    else:
        real = Path(os.path.realpath(path))  # what a link leads to has its adapter beside it
        safe = [name for name in (recorded, *names) if name and os.path.basename(name) == name]  # the file could name any folder
        folders = [adapter_path(real), adapter_path(path), *(real.with_name(name) for name in safe)]
        candidates = [one for folder in dict.fromkeys(folders) for one in (folder, _earlier(folder, sha256))]
    return next((folder for folder in candidates if folder.is_dir() and _sha256(folder) == sha256), None)


def former_names(events: Iterable[Event]) -> tuple[str, ...]:
    """What the adapter's folder was called under the session's earlier names."""
    names = [event["was"] for event in events if event.get("what") == "named" and isinstance(event.get("was"), str)]
    return tuple(beside(Path(name), ".adapter").name for name in names if name and os.path.basename(name) == name)


def move_adapters(before: Path, after: Path) -> None:
    """All adapters of a session to its new name. Raises OSError."""
    old, new = adapter_path(Path(before)), adapter_path(Path(after))
    for found in _all(old):
        os.rename(found, new.with_name(new.name + found.name[len(old.name):]))


def remove(path: Path) -> None:
    """Takes a session away, with its adapters and its lock, as far as the system lets one."""
    Path(path).unlink(missing_ok=True)
    remove_lock(Path(path))
    for found in _all(adapter_path(Path(path))):
        shutil.rmtree(found, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(one for one in folder.parent.iterdir() if one.is_dir() and (one == folder or _is_earlier(one, folder)))


def _earlier(folder: Path, sha256: str) -> Path:
    return folder.with_name(f"{folder.name}.{sha256[:SHOWN]}")


def _is_earlier(found: Path, folder: Path) -> bool:
    rest = found.name.removeprefix(f"{folder.name}.")
    return found.name != rest and len(rest) == SHOWN and all(character in "0123456789abcdef" for character in rest)


def _sha256(folder: Path) -> str:
    try:
        return directory_sha256(folder)
    except SessionError:
        return ""
