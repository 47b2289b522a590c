"""What a session file or an adapter folder says of an adapter: its base, its cases, how it was made and measured. No model needed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.errors import ExportError, SessionError
from lawf_repl.records import Anchor, Case, Message, Scorecard

SCHEMA = "lawf.adapter/1"
ABOUT = "lawf.json"
DEMO_NAME, DEMO_FOLDER = "lawf-demo", Path(__file__).parent.parent / "demo" / "model"
MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Known:
    """An accepted answer, with the conversation that it answers and, where it is known, the base's own greedy answer."""

    case: Case
    messages: tuple[Message, ...]
    base_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Source:
    """What is known of one adapter. `base` has the keys of a session's model (id, revision, hashes, dtype), as far as they are known."""

    path: Path
    adapter: Path | None
    base: dict[str, Any]
    known: tuple[Known, ...] = ()
    recipe: dict[str, Any] | None = None
    scorecard: Scorecard | None = None
    sha256: str | None = None     # of adapter_model.safetensors, where lawf.json has it
    session: str | None = None    # id of the session that it comes from
    dropped: str | None = None    # what a cut last line of the session was
    weights: str | None = None    # the session's own hash of the base's weights (measure.answers), of one number type
    template_args: dict[str, Any] | None = None  # what the chat template was given, where that is known

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(known.case for known in self.known)


def read_source(path: Path, with_adapter: bool = True) -> Source:
    """A session file, or an adapter folder: with lawf.json, beside its session, or plain.

    Raises ExportError for a session without an adapter (unless `with_adapter` is false) or a path that is neither, SessionError
    for a file that cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise ExportError(f"{path} does not exist: expected a session file, the name of a session (lawf sessions lists them) or an adapter folder")
    source = _read_session(path)
    if with_adapter and source.adapter is None:
        raise ExportError(f"session {path} has no adapter: train it first, with lawf fix or lawf train")
    return source


def base_id(source: Source) -> str | None:
    """What --model has to name to load the base of `source`: None is the embedded demo model. Raises ExportError where nothing says it."""
    found = source.base.get("id")
    if not isinstance(found, str) or not found:
        raise ExportError(f"{source.path} does not say which base it belongs to: name it with --model")
    if found == DEMO_NAME or (os.path.isdir(found) and Path(found).resolve() == DEMO_FOLDER.resolve()):
        return None
    return found


# Folders

def _read_folder(folder: Path) -> Source:
    if not (folder / "adapter_config.json").is_file():
        hint = " (it holds a whole model: lawf --model takes it as it is)" if (folder / "config.json").is_file() else ""
        raise ExportError(f"{folder} is no adapter folder: expected adapter_config.json and adapter_model.safetensors in it{hint}")
    config = _object(folder / "adapter_config.json")
    if (folder / ABOUT).is_file():
        return _read_about(folder)
    beside = folder.with_name(folder.name.removesuffix(".adapter") + store.SUFFIX)
    if folder.name.endswith(".adapter") and beside.is_file():
        source = _read_session(beside)
        if source.adapter is not None and source.adapter.resolve() == folder.resolve():
            return replace(source, path=folder, adapter=folder)
    return Source(folder, folder, {"id": config.get("base_model_name_or_path"), "revision": config.get("revision")})


def _read_about(folder: Path) -> Source:
    """lawf.json of an exported adapter."""
    path = folder / ABOUT
    about = _object(path)
    if about.get("schema") != SCHEMA:
        raise ExportError(f"{path} has schema {str(about.get('schema'))[:40]!a}: this lawf reads {SCHEMA}; update lawf to read it")
    try:
        known = tuple(
            Known(store.from_json(Case, {name: row[name] for name in ("prompt", "prompt_ids", "completion_ids", "anchors", "accepted")}),
                  _messages(row["messages"]), tuple(row["base_ids"]) if row.get("base_ids") else None)
            for row in about["cases"])
        card = store.from_json(Scorecard, about["scorecard"]) if about.get("scorecard") else None
        base, sha256 = dict(about["base"]), str(about["adapter"]["sha256"])
    except (KeyError, TypeError, ValueError, SessionError) as error:
        raise ExportError(f"{path} is damaged: {error}; remove it to use the folder as a plain adapter") from None
    given = about.get("template_args")
    return Source(folder, folder, base, known, about.get("recipe"), card, sha256, about.get("session"),
                  template_args=given if isinstance(given, dict) else None)


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ExportError(f"{path} has more than {MOST_BYTES // 10**6} MB: it is no file of an adapter")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise ExportError(f"{path} is damaged: expected one JSON object") from None
    if not isinstance(found, dict):
        raise ExportError(f"{path} is damaged: expected one JSON object")
    return found


# Sessions

def _read_session(path: Path) -> Source:
    loaded = store.load(path)
    try:
        return _from_events(path, loaded)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SessionError(f"session {path}: an event lacks {error}; the session is damaged") from None


def _from_events(path: Path, loaded: store.LoadedSession) -> Source:
    messages: dict[tuple[int, ...], tuple[Message, ...]] = {}  # by prompt ids
    prompts: dict[int, tuple[int, ...]] = {}                   # of each node
    firsts: dict[tuple[int, ...], tuple[int, ...]] = {}        # base's greedy answers
    accepted: dict[tuple[int, ...], Case] = {}
    source = Source(path, None, dict(loaded.header["model"]), session=loaded.header["id"], dropped=loaded.dropped)
    trained: list[tuple[int, ...]] | None = None
    for event in loaded.events:
        kind = event["type"]
        if kind == "prompt":
            messages[tuple(event["prompt_ids"])] = _messages(event["messages"])
        elif kind == "completion":
            ids = tuple(event["prompt_ids"])
            prompts[event["node"]] = ids
            answer = tuple(token["id"] for token in event["tokens"])
            if not event["adapter_on"] and event["sampling"]["temperature"] == 0 and event["finish"] != "interrupted":
                firsts.setdefault(ids, answer)  # the first of a prompt is its root: nothing was corrected yet
        elif kind == "accept":
            ids = prompts[event["node"]]
            anchors = tuple(store.from_json(Anchor, anchor) for anchor in event["anchors"])
            accepted.pop(ids, None)  # accepted again: it comes last
            accepted[ids] = Case(messages[ids][-1]["content"], ids, tuple(event["completion_ids"]), anchors, str(event["text"]))
        elif kind == "note" and event.get("what") == "opened":
            given = event.get("settings", {}).get("template_args")
            source = replace(source, weights=event.get("weights_sha256"), template_args=dict(given) if isinstance(given, dict) else None)
        elif kind == "note" and "taken out of the training" in str(event.get("text")):
            accepted.pop(tuple(event["prompt_ids"]), None)
        elif kind == "training":
            trained = [tuple(ids) for ids in event["prompts"]]
            source = replace(source, recipe=dict(event["recipe"]), scorecard=None)
        elif kind == "scorecard":
            source = replace(source, scorecard=store.from_json(Scorecard, {name: event[name] for name in event if name not in ("type", "at")}))
        elif kind == "adapter":
            source = replace(source, adapter=_adapter_of(path, event))
    chosen = [case for ids, case in accepted.items() if source.adapter is None or trained is None or ids in trained]
    return replace(source, known=tuple(Known(case, messages[case.prompt_ids], firsts.get(case.prompt_ids)) for case in chosen))


def _adapter_of(path: Path, event: dict[str, Any]) -> Path:
    """The folder that an adapter event names; the one beside the session where both were moved."""
    named = Path(str(event["path"]))
    folder, beside = named if named.is_absolute() else path.parent / named, store.adapter_path(path)
    return beside if beside.is_dir() and not folder.is_dir() else folder


def check_adapter(source: Source) -> Path:
    """The adapter's folder. Raises ExportError where it is gone, or is not the one that the session recorded."""
    folder = source.adapter
    if folder is None:
        raise ExportError(f"{source.path} has no adapter: train it first, with lawf fix or lawf train")
    if not folder.is_dir():
        raise ExportError(f"the adapter of {source.path} is gone: expected the folder {folder}; put it back, or train again with lawf train")
    if source.path.is_file():
        events = [event for event in store.load(source.path).events if event["type"] == "adapter"]
        if events and events[-1].get("sha256") != store.directory_sha256(folder):
            raise ExportError(f"the adapter {folder} is not the one that {source.path} recorded: its files have changed; "
                              "to export it all the same, name the folder instead of the session")
    return folder


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value or not all(
            isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in value):
        raise ValueError("a conversation of role and content")
    return tuple(dict(one) for one in value)
