"""The recording in the README is what the program did: it is the cast's screens, and the program still draws like this."""

from __future__ import annotations

import json
import re

import pytest

from lawf_repl.ui.screen import hint
from tests.recording import CAST, README, STEPS, read_cast, scenes, shortened, tour


def test_the_readme_shows_what_the_cast_does() -> None:
    assert tour(read_cast()) in README.read_text(encoding="utf-8")


def test_the_cast_is_one_that_players_take() -> None:
    header, *events = map(json.loads, CAST.read_text(encoding="utf-8").splitlines())
    assert header["version"] == 2 and (header["width"], header["height"]) == (80, 24)
    assert [event[0] for event in events] == sorted(event[0] for event in events) and {event[1] for event in events} == {"o", "m"}
    assert [data for _, kind, data in events if kind == "m"] == [caption for _, _, caption in STEPS if caption]


def test_the_screens_are_those_of_today() -> None:
    shown = dict(scenes(read_cast()))
    assert hint("view") in next(screen for caption, screen in shown.items() if "opened" in caption)
    training = next(screen for caption, screen in shown.items() if "trains" in caption)
    assert re.search(r"round \d of 5, at most \d+ s more", training) and "drift" in training
    last = next(screen for caption, screen in shown.items() if "before and after" in caption)
    assert "Fixed: the prompt now gives" in last and "reliability" in last
    export = next(screen for caption, screen in shown.items() if "export" in caption)
    assert "PASS  australia" in export and "serve it:" in export and "load_adapter: 1 of 1 accepted answers" in export


def test_no_path_of_the_machine_stands_in_it() -> None:
    events = [(0.0, "o", "in /tmp/home/x and /root/lawf/tests"), (0.1, "m", "and so on")]
    assert shortened(events, {"/tmp/home": "~", "/root/lawf": "~/lawf"})[0][2] == "in ~/x and ~/lawf/tests"
    with pytest.raises(SystemExit, match="two pieces"):
        shortened([(0.0, "o", "/tmp/ho"), (0.1, "o", "me")], {"/tmp/home": "~"})
    assert not re.search(r"/(?:tmp|home|root|work|Users)/", CAST.read_text(encoding="utf-8"))
