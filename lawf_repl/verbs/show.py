"""`lawf show`: a saved session as a story, read from its file alone."""

from __future__ import annotations

import argparse
import os

from lawf_repl.chronicle import chronicle_json, read_chronicle
from lawf_repl.config import Settings
from lawf_repl.places import find_one, sessions_place
from lawf_repl.ui.chronicle import story_view
from lawf_repl.verbs.inputs import print_json
from lawf_repl.verbs.story import Story


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    """Exit code 0. Raises SessionError where there is no session, or not even its header can be read."""
    path = find_one(options.session, sessions_place(getattr(options, "sessions", None), os.environ).path)
    chronicle = read_chronicle(path)
    if settings.json:
        print_json(chronicle_json(chronicle))
        return 0
    story = Story(settings)
    for part in story_view(chronicle, story.theme, story.console.width):
        story.console.print(part)
    return 0
