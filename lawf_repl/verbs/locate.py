"""`lawf locate`: where things are, and why there."""

from __future__ import annotations

import argparse
import os

from lawf_repl.config import Settings
from lawf_repl.places import all_places
from lawf_repl.ui.layout import visible
from lawf_repl.verbs.inputs import print_json


def run_locate(options: argparse.Namespace, settings: Settings) -> int:
    """One line a place. Raises UsageError where the folder of sessions is none."""
    places = all_places(getattr(options, "sessions", None), os.environ)
    if settings.json:
        print_json({"schema": "lawf.locate/1", "places": {name: {"path": str(place.path), "exists": os.path.exists(place.path), "why": place.why}
                                                          for name, place in places.items()}})
        return 0
    for name, place in places.items():
        there = "" if os.path.exists(place.path) else "not there yet; "
        print(f"{name:<9} {visible(str(place.path))}  ({there}{visible(place.why)})")
    return 0
