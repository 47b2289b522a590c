"""A process that is killed at any moment loses at most the event that it was writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lawf_repl import store
from lawf_repl.errors import SessionError
from lawf_repl.restore import restore
from tests.scripted_session import PHASES, SETTINGS, tiny

KILLS = 200
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def kill(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Folders of sessions whose processes were killed, the first one not; and what their parent saw."""
    done = subprocess.run([sys.executable, "-m", "tests.scripted_session", str(folder), str(KILLS), "1"], capture_output=True, text=True,
                          timeout=600, cwd=Path(__file__).parent.parent, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def bare(event: dict[str, Any], name: str) -> dict[str, Any]:
    """An event without its times and without the names that differ from run to run."""
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if key not in ("at", "timing", "seconds", "was")}
        if isinstance(value, list):
            return [clean(item) for item in value]
        return value

    text = json.dumps(clean(event)).replace(f"{name}-", "NAME-")
    found: dict[str, Any] = json.loads(text)
    return found | ({"path": ""} if event["type"] == "adapter" else {})


def session_in(folder: Path) -> Path | None:
    """The one session file of a folder."""
    found = [path for path in folder.iterdir() if path.suffix == store.SUFFIX]
    assert len(found) <= 1
    return found[0] if found else None


def loaded(killed: tuple[Path, list[dict[str, Any]]]) -> Iterator[tuple[dict[str, Any], Path]]:
    folder, seen = killed
    for one in seen[1:]:
        path = session_in(folder / one["name"])
        if path is None:
            assert one["written"] == 0
        elif one["written"]:  # killed before that, even the header may be cut
            yield one, path


def the_kills_hit_every_phase(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = killed
    hit = Counter(one["phase"] for one in seen[1:])
    assert sum(hit.values()) == KILLS and min(hit[phase] for phase in PHASES[1:]) >= 10, hit
    assert len({one["written"] for one in seen}) > 15, "at many moments"


def every_event_that_had_been_written_is_there_and_nothing_else(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, seen = killed
    whole = session_in(folder / seen[0]["name"])
    assert whole is not None
    expected = [bare(event, seen[0]["name"]) for event in store.load(whole).events]
    assert len(expected) == seen[0]["written"]
    for one, path in loaded(killed):
        events = [bare(event, one["name"]) for event in store.load(path).events]
        assert events == expected[:len(events)] and one["written"] <= len(events) <= one["written"] + 1, one


def what_is_there_is_whole_adapters_too_and_can_be_gone_on_with(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    for one, path in loaded(killed):
        assert [finding for finding in store.verify(path) if "was cut" not in finding.text] == [], one
        with store.open_to_append(path) as file:  # the lock went with the process
            file.append("note", text="on")
        assert store.verify(path) == []
        assert not [left for left in path.parent.iterdir() if left.name.endswith(".tmp")]


def sessions_of_every_phase_are_rebuilt_and_go_on(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    engine, done = tiny(), Counter[str]()
    for one, path in loaded(killed):
        if done[one["phase"]] >= 2:
            continue
        done[one["phase"]] += 1
        session = restore(path, engine, SETTINGS)
        trained = [event for event in store.load(path).events if event["type"] in ("training", "adapter")]
        assert session.has_adapter == (bool(trained) and trained[-1]["type"] == "adapter")
        if session.node is None:
            list(session.ask("What is it?"))
        assert session.node is not None and session.trouble is None
        session.close()
        assert store.verify(path) == []
    assert set(done) >= set(PHASES[2:])


def what_was_lost_can_be_refused_by_name(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    """Where even the header was cut there is no session, and it is said."""
    folder, seen = killed
    for one in seen[1:]:
        path = session_in(folder / one["name"])
        if path is not None and not one["written"]:
            try:
                store.load(path)
            except SessionError as error:
                assert "is not a lawf session" in str(error)


def test_a_session_killed_at_any_moment_loses_at_most_what_it_was_writing(tmp_path: Path) -> None:
    """One test, because two processes of pytest would otherwise each kill two hundred sessions to look at."""
    killed = kill(tmp_path)
    the_kills_hit_every_phase(killed)
    every_event_that_had_been_written_is_there_and_nothing_else(killed)
    what_is_there_is_whole_adapters_too_and_can_be_gone_on_with(killed)
    sessions_of_every_phase_are_rebuilt_and_go_on(killed)
    what_was_lost_can_be_refused_by_name(killed)
