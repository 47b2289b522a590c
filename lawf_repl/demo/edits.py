"""The planted mistakes as data: edits.json, written by build.py from the world and read by everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EDITS = Path(__file__).parent / "edits.json"


def load_edits() -> list[dict[str, Any]]:
    """Each with name, kind, prompt, wrong, right, paraphrases and neighbours."""
    edits: list[dict[str, Any]] = json.loads(EDITS.read_text(encoding="utf-8"))
    return edits
