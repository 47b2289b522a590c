"""Session files: JSON Lines, appended to and never rewritten in place, readable without a model.

Line 1 is the header, every other line an event {"type", "at", ..., "sum"}. A line counts once its newline is on the disk, so a
process killed at any moment loses at most the event that it was writing. Beside NAME.jsonl lie NAME.lock, which keeps two
writers apart, and NAME.adapter/, a peft directory.
"""

from lawf_repl.store.adapters import find_adapter, former_names, keep_adapter, remove
from lawf_repl.store.disk import adapter_path, directory_sha256, lock_path
from lawf_repl.store.file import SessionFile, load, open_to_append
from lawf_repl.store.journal import Journal
from lawf_repl.store.lines import EVENT_TYPES, MODEL_KEYS, SCHEMA, SUFFIX, Event, Header, LoadedSession, Migration
from lawf_repl.store.salvage import Salvaged, salvage
from lawf_repl.store.values import (
    anchor_from_json,
    anchor_to_json,
    completion_from_json,
    completion_to_json,
    correction_from_json,
    correction_to_json,
    from_json,
    to_json,
    token_from_json,
    token_to_json,
)
from lawf_repl.store.verification import Finding, verify

__all__ = [
    "EVENT_TYPES", "MODEL_KEYS", "SCHEMA", "SUFFIX", "Event", "Finding", "Header", "Journal", "LoadedSession", "Migration", "Salvaged", "SessionFile",
    "adapter_path", "anchor_from_json", "anchor_to_json", "completion_from_json", "completion_to_json", "correction_from_json",
    "correction_to_json", "directory_sha256", "find_adapter", "former_names", "from_json", "keep_adapter", "load", "lock_path", "open_to_append",
    "remove", "salvage", "to_json", "token_from_json", "token_to_json", "verify",
]
