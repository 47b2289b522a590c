"""Session files for the tests of what reads them: one in which everything happens that can, always the same, and any change of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.course import Course
from lawf_repl.records import (
    Alternative,
    Anchor,
    Check,
    Completion,
    Correction,
    Curve,
    ProbeResult,
    Reuse,
    Scorecard,
    Timing,
    Token,
    TrainingResult,
    TrainStep,
)
from lawf_repl.store.disk import directory_sha256
from lawf_repl.store.lines import to_line, to_lines

Event = dict[str, Any]
HEADER = {"lawf_session": 1, "id": "0" * 32, "created": "2026-11-24T12:22:04.872+00:00", "lawf_version": "0.1.0",
          "model": {"id": "owner/model", "revision": "abc", "config_sha256": "a" * 64, "tokenizer_sha256": "b" * 64, "template_sha256": "c" * 64,
                    "dtype": "float32"}}
PROMPT = "What is the capital of Australia?"
PROMPT_IDS = (1, 50, 51, 2)
TIMING = Timing(0.012, 0.1, 80.0, Reuse("cut", 22, 3))


def token(id_: int, text: str, p: float = 0.99, others: Sequence[tuple[int, str, float]] = (), *, special: bool = False) -> Token:
    alternatives = tuple(Alternative(*one) for one in sorted([(id_, text, p), *others], key=lambda one: -one[2]))
    return Token(id_, text, p, [one.id for one in alternatives].index(id_), 0.3, alternatives, special)


END = token(0, "<|im_end|>", 0.98, special=True)
START = (token(5, "The"), token(6, " capital"), token(7, " is", 0.72, [(8, " of", 0.2)]))
BEFORE = Completion(PROMPT_IDS, (*START, token(9, " Sydney", 0.41, [(10, " Canberra", 0.33)]), token(11, "."), END), "eos", TIMING)
AFTER = Completion(PROMPT_IDS, (*START, token(10, " Canberra", 0.33, [(9, " Sydney", 0.41)]), token(11, "."), END), "eos", TIMING)
LEARNED = Completion(PROMPT_IDS, (*START, token(10, " Canberra", 0.97, [(9, " Sydney", 0.02)]), token(11, "."), END), "eos", TIMING)
ANCHOR = Anchor(3, 9, 10, " Sydney", " Canberra", 1.0, 0.33)
RESULT = TrainingResult(12, 1.5, "converged", 0.0001, (0.97,), 1.0)
CARD = Scorecard(1.0, (Check("Capital?", AFTER.text, AFTER.text), Check("Which city?", AFTER.text, BEFORE.text)),
                 (Check("And Spain?", "Madrid.", "Madrid."),), ProbeResult(208, 1.2e-6, 0.0, 0.0))


def curve() -> Curve:
    """Twelve steps in two rounds."""
    course = Course()
    for n in range(1, 13):
        course.add(TrainStep(n, 3 / n ** 2, (1 - 0.6 / n,), 1e-6 * n, n / 8, n > 3, 1 if n < 8 else 2))
    found = course.curve()
    assert found is not None
    return found


def events(folder: Path) -> list[Event]:
    """Everything that can happen, with an adapter in `folder`."""
    adapter = folder / "whole.adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    message = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
    correction = Correction("replace", 3, " Canberra", (10,), (9, 11, 0))
    told: list[Event] = [
        {"type": "note", "what": "opened", "text": "recorded with lawf", "versions": {"torch": "2.13.0"}, "device": "cpu", "settings": {}},
        {"type": "prompt", "messages": message, "prompt_ids": list(PROMPT_IDS)},
        {"type": "completion", "node": 0, "adapter": 0, "adapter_on": False, "confidence": 1.0, **store.completion_to_json(BEFORE)},
        {"type": "correction", "node": 1, "parent": 0, "adapter_on": False, "confidence": 1.0, **store.correction_to_json(correction)},
        {"type": "completion", "node": 1, "adapter": 0, "adapter_on": False, "confidence": 1.0, **store.completion_to_json(AFTER)},
        {"type": "undo", "node": 0, "adapter": 0, "adapter_on": False},
        {"type": "undo", "node": 1, "adapter": 0, "adapter_on": False},
        {"type": "accept", "node": 1, "completion_ids": list(AFTER.ids), "text": AFTER.text, "anchors": [store.anchor_to_json(ANCHOR)]},
        {"type": "note", "what": "paraphrase", "text": "a paraphrase", "prompt": "Capital?"},
        {"type": "note", "what": "paraphrase", "text": "a paraphrase", "prompt": "Which city?"},
        {"type": "note", "what": "neighbour", "text": "a neighbour", "prompt": "And Spain?"},
        {"type": "note", "text": "a probe was added", "prompt": "And you?", "prompt_ids": [3], "answer_ids": [4]},
        {"type": "note", "what": "settings", "text": "set rank", "settings": {"rank": 2}},
        {"type": "training", "node": 2, "parent": 1, "adapter": 1, "before": [0, False], "recipe": {"rank": 2}, "prompts": [list(PROMPT_IDS)],
         **store.to_json(RESULT), "curve": store.to_json(curve())},
        {"type": "adapter", "path": adapter.name, "sha256": directory_sha256(adapter), "adapter": 1},
        {"type": "rerun", "prompt": PROMPT, "before": BEFORE.text, "before_ids": list(BEFORE.ids), "before_matches": True, "accepted": AFTER.text,
         "after": LEARNED.text, "after_ids": list(LEARNED.ids), "fixed": True, "adapter": 1, "after_completion": store.completion_to_json(LEARNED)},
        {"type": "scorecard", **store.to_json(CARD)},
        {"type": "export", "format": "peft", "path": "/tmp/out", "passed": True, "adapter": 1},
        {"type": "adapter", "path": "gone.adapter", "sha256": "d" * 64, "adapter": 1},
    ]
    return [{"type": event["type"], "at": f"2026-11-24T12:{number:02d}:00.000+00:00", **event} for number, event in enumerate(told)]


def write(path: Path, told: Sequence[Event], header: dict[str, Any] = HEADER, *, sums: bool = True) -> Path:
    """A session file of these events, as lawf writes it; without sums as older versions did."""
    path.write_bytes(b"".join(to_lines(header, tuple(told)) if sums else [to_line(header), *map(to_line, told)]))
    return path


def whole(folder: Path, name: str = "whole") -> Path:
    """The session in which everything happens."""
    return write(folder / f"{name}.jsonl", events(folder))


def spoiled(path: Path, number: int, line: bytes) -> Path:
    """The file with another line in place of one, counted from 1."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line
    path.write_bytes(b"".join(lines))
    return path


def stored(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
