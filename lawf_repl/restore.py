"""A session out of its file: the same tree, cases, trainings and settings, without generating anything again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.config import FIELDS, Settings, check_value
from lawf_repl.engine.base import DEMO_NAME, Engine
from lawf_repl.engine.decode import Sampling
from lawf_repl.errors import LawfError, SessionError, UsageError
from lawf_repl.learn.adapter import read_weights
from lawf_repl.measure.answers import weights_sha256
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.measure.prompts import Prompts
from lawf_repl.nodes import answered_node, trained_node
from lawf_repl.records import Anchor, Completion, Correction, Message, Node, Scorecard, TrainingResult
from lawf_repl.rules import Value
from lawf_repl.session import LIBRARIES, NOT_RECORDED, RECIPE, Question, Session, opening_note
from lawf_repl.store import Event, LoadedSession
from lawf_repl.versions import Version

NONE = -1  # the number of no adapter of the session
OLD_NOTES = {"an answer is held": "held", "an accepted answer was taken out of the training": "dropped"}  # before notes said what they are
PARTS = {"config_sha256": "the model's config", "weights_sha256": "the model's weights", "tokenizer_sha256": "the tokenizer",
         "template_sha256": "the chat template"}


def restore(path: Path, engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None = None,
            keep: Collection[str] = ()) -> Session:
    """The session of a file, which goes on in that file; `keep` names settings that stay as given, not as recorded.

    Raises SessionError where the file cannot be read, is in use or was made with another tokenizer, whose ids mean other texts.
    """
    file = store.open_to_append(path)
    session: Followed | None = None
    try:
        loaded = file.loaded
        refuse_other_tokenizer(path, loaded, engine)
        session = Followed(path, engine, recorded(loaded, settings, keep), probes, loaded.events)
        session.keep = frozenset(keep)
        for event in loaded.events:
            session.follow(event)
        session.settle()
    except BaseException:
        if session is not None:
            session.bare()  # the model may be another session's
        file.close()
        raise
    session.told += [f"{one} differs from the one this was recorded with" for one in changed_parts(loaded, engine)]
    if loaded.dropped:
        session.told.append(loaded.dropped)
    if loaded.altered:
        session.told.append(f"line {loaded.altered[0]} of the file is not as lawf wrote it: lawf sessions --verify says more")
    session.journal.go_on(file)
    session.journal.record("note", **(opening_note(engine, session.settings) | {"text": "went on"}))
    return session


def recorded(loaded: LoadedSession, settings: Settings, keep: Collection[str] = ()) -> Settings:
    """Settings as a session began with them, and its model; those that `keep` names stay. Raises SessionError for values that cannot be."""
    note = next((event for event in loaded.events if event.get("what") == "opened"), {})
    settings = with_recorded(settings, note.get("settings", {}), keep)
    model = loaded.header["model"]
    if "model" in keep or not isinstance(model.get("id"), str):
        return settings
    # What a file names is not what the user chose: code that comes with it is run only if that is asked for here.
    named = None if model["id"] == DEMO_NAME else model["id"]
    revision = settings.revision if "revision" in keep else model.get("revision") or None
    dtype = settings.dtype if "dtype" in keep or model.get("dtype") not in ("float32", "bfloat16", "float16") else model["dtype"]
    return replace(settings, model=named, revision=revision, dtype=dtype,
                   trust_remote_code=settings.trust_remote_code and "trust_remote_code" in keep)


def with_recorded(settings: Settings, values: Any, keep: Collection[str] = ()) -> Settings:
    """`settings` with recorded values in place of its own; fields that this version does not have are passed over. Raises SessionError."""
    if not isinstance(values, dict):
        raise SessionError("the recorded settings are damaged: expected an object")
    known: dict[str, Value] = {}
    for name, value in values.items():
        if name in FIELDS and name not in NOT_RECORDED and name not in keep:
            try:
                known[name] = None if value is None and FIELDS[name].default is None else check_value(name, value)
            except UsageError as error:
                raise SessionError(f"the recorded settings are damaged: {error}") from None
    return replace(settings, **known)  # type: ignore[arg-type]  # checked by its rule


def refuse_other_tokenizer(path: Path, loaded: LoadedSession, engine: Engine) -> None:
    """Raises SessionError where ids would mean other texts than in the file."""
    was = loaded.header["model"].get("tokenizer_sha256")
    if was and was != engine.fingerprint()["tokenizer_sha256"]:
        raise SessionError(f"session {path}: the tokenizer differs from the one this was recorded with, so its ids mean nothing here; "
                           f"load {loaded.header['model'].get('id')} as it was then")


def changed_parts(loaded: LoadedSession, engine: Engine) -> list[str]:
    """What of the model is another than when the session was recorded."""
    now = {**engine.fingerprint(), "weights_sha256": weights_sha256(engine.model)}
    was = {**{key: event[key] for event in loaded.events if event.get("what") == "opened" for key in ("weights_sha256",) if key in event},
           **loaded.header["model"]}
    return [name for key, name in PARTS.items() if was.get(key) and was[key] != now[key]]


def changed_surroundings(loaded: LoadedSession, engine: Engine) -> list[str]:
    """Library versions, device and number type that are others, each as a sentence; they can move near-ties and little else."""
    note: Event = {}
    for event in loaded.events:
        if event.get("what") == "opened":
            note = note or event
    now = opening_note(engine, Settings())
    was = note.get("versions") if isinstance(note.get("versions"), dict) else {}
    out = [f"{name} is {now['versions'][name]}, and was {was[name]} when this was recorded" for name in LIBRARIES
           if was and name in was and was[name] != now["versions"][name]]
    for key, here in (("device", now["device"]), ("dtype", engine.dtype)):
        then = note.get("device") if key == "device" else loaded.header["model"].get("dtype")
        if then and then != here:
            out.append(f"the {'device' if key == 'device' else 'number type'} is {here}, and was {then} when this was recorded")
    return out


class Followed(Session):
    """A session that is told what happened instead of doing it."""

    def __init__(self, path: Path, engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None = None,
                 events: Iterable[Event] = ()) -> None:
        super().__init__(engine, replace(settings, adapter=None), probes)
        self.path = path
        self.told: list[str] = []            # what the user has to know
        self.keep: frozenset[str] = frozenset()
        self.stands: tuple[int, bool] = (0, False)  # which adapter stood in the file's story, and whether it was on
        self._names = store.former_names(events)
        self._asking = Question()
        self._pending: tuple[int, int, Correction] | None = None  # a correction whose completion comes next: node, parent

    @property
    def notes(self) -> list[str]:
        return [*super().notes, *self.told]

    def follow(self, event: Event) -> None:
        """One event of the file, in its order. Raises SessionError where it does not fit those before."""
        handler = getattr(self, f"follow_{event['type']}", None)
        if handler is None:
            return
        try:
            self._refuse_unknown_ids(event)
            handler(event)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise SessionError(f"session {self.path}: a {event['type']} event is damaged ({type(error).__name__}: {error}); "
                               "lawf sessions --verify says more") from None

    def _refuse_unknown_ids(self, event: Event) -> None:
        """Raises ValueError for a token that the model does not have: some devices end the process where they look it up."""
        answers = (event, event.get("after_completion") or {})
        ids = [*(id_ for key in ("prompt_ids", "answer_ids", "ids") for id_ in event.get(key, ())),
               *(id_ for one in answers for id_ in one.get("prompt_ids", ())), *(token["id"] for one in answers for token in one.get("tokens", ()))]
        size = int(self.engine.model.get_input_embeddings().num_embeddings)
        unknown = next((id_ for id_ in ids if not 0 <= id_ < size), None)
        if unknown is not None:
            raise ValueError(f"there is no token {unknown}")

    def settle(self) -> None:
        """At the end of the file: the adapter that stood is in place again, or the base where it is not there."""
        number, on = self.stands
        version = self._versions[number]
        if version is not None and version.weights is None:
            self.told.append(f"{version.absence}; the base stands")
            number, on = self._nothing(), False
        self._install(number, on)

    def bare(self) -> None:
        """No adapter on the model, whatever stands in the file's story."""
        self.decoder.drop_cache()
        self._remove_adapter()
        self._version, self._structure = NONE, ()

    # -- one method for each type of event ---------------------------------------------------------------------------

    def follow_prompt(self, event: Event) -> None:
        messages: tuple[Message, ...] = tuple({"role": str(one["role"]), "content": str(one["content"])} for one in event["messages"])
        if not messages:
            raise ValueError("no messages")
        sampling = store.from_json(Sampling, event["sampling"]) if "sampling" in event else self._sampling()
        self._asking = Question(messages, whole_numbers(event["prompt_ids"]), sampling)

    def follow_correction(self, event: Event) -> None:
        self._pending = (event["node"], event["parent"], store.from_json(Correction, event))

    def follow_completion(self, event: Event) -> None:
        self.answered(event, store.from_json(Completion, event))

    def answered(self, event: Event, answer: Completion) -> Node:
        """Adds the node of a completion event, with this answer."""
        number = event["node"]
        if number != len(self.nodes):
            raise ValueError(f"expected answer {len(self.nodes)}, found {number}")
        parent, correction = self.pending(number)
        if parent is None:
            self._question = self._asking
        else:
            self._question = self._questions[self._root(parent).id]
        version = event.get("adapter", self.stands[0])
        self.stands = (version, bool(event["adapter_on"]))
        confidence = float(event.get("confidence", self.settings.confidence))
        node = answered_node(number, parent, answer, correction, version, bool(event["adapter_on"]), confidence)
        self._pending = None
        self._add(node)
        return node

    def pending(self, number: int) -> tuple[Node | None, Correction | None]:
        """Parent and correction of the answer that comes next; none for a first answer."""
        if self._pending is None or self._pending[0] != number:
            return None, None
        return self.nodes[self._pending[1]], self._pending[2]

    def follow_undo(self, event: Event) -> None:
        self.node = self.nodes[event["node"]]
        self._question = self._questions[self._root(self.node).id]
        self.stand(event)

    def follow_accept(self, event: Event) -> None:
        self.node = self.nodes[event["node"]]
        self._question = self._questions[self._root(self.node).id]
        self._accept(self.node, anchors_of(event))

    def follow_training(self, event: Event) -> None:
        result = store.from_json(TrainingResult, event)
        self.trained(event, Version(None, self._loaded_before(event), self.recipe(event), result, (event["before"][0], bool(event["before"][1]))))

    def recipe(self, event: Event) -> Settings:
        """The settings of a training."""
        return with_recorded(self.settings, {name: event["recipe"][name] for name in RECIPE if name in event["recipe"]})

    def trained(self, event: Event, version: Version) -> None:
        """Adds a training with the adapter that it gave."""
        number = event["adapter"]
        if not len(self._versions) <= number <= len(self._versions) + 1:
            raise ValueError(f"expected adapter {len(self._versions)}, found {number}")
        while len(self._versions) < number:
            self._versions.append(None)  # the base, where the session began with an adapter
        self._versions.append(version)
        assert version.training is not None
        self.training, self.stands = version.training, (number, True)
        if event["node"] is not None and event["parent"] is not None:
            parent = self.nodes[event["parent"]]
            self.node = parent
            self._question = self._questions[self._root(parent).id]
            self._add(trained_node(len(self.nodes), parent, version.training, number, self.settings.confidence))

    def _loaded_before(self, event: Event) -> str | None:
        """The folder of the adapter that a training built upon, if it was one from a folder."""
        before = self._versions[event["before"][0]] if event["before"][0] < len(self._versions) else None
        return before.loaded if before is not None else None

    def follow_adapter(self, event: Event) -> None:
        folder = store.find_adapter(self.path, event, self._names)
        if event.get("loaded"):
            weights = self.weights_in(folder) if folder else None
            self._versions[0] = Version(weights, str(folder or event["path"]), self.settings, None, folder=self.named(event))
            self.stands = (0, True)
            return
        number = event.get("adapter", len(self._versions) - 1)
        version = self._versions[number]
        if folder is not None and version is not None:
            loaded = version.loaded if version.loaded is None or Path(version.loaded).is_dir() else str(folder)  # it has the same structure
            self._versions[number] = replace(version, weights=self.weights_in(folder), loaded=loaded, folder=self.named(event))
        elif version is not None and version.weights is None:
            self._versions[number] = replace(version, folder=self.named(event))

    def named(self, event: Event) -> str:
        """The folder that an adapter event names; one that stands beside the file, where the file lies now."""
        folder = event.get("path")
        if not isinstance(folder, str):
            return ""
        return folder if Path(folder).is_absolute() else str(self.path.parent / folder)

    def weights_in(self, folder: Path) -> dict[str, Any] | None:
        """The weights of a saved adapter; what does not fit this model is told and counts as not saved."""
        self.bare()
        try:
            return read_weights(self.engine.model, folder)
        except LawfError as error:
            self.told.append(str(error))
            return None

    def follow_note(self, event: Event) -> None:
        what = event.get("what") or OLD_NOTES.get(str(event.get("text")))
        if what in ("settings", "opened"):
            self.settings = with_recorded(self.settings, event.get("settings", {}), self.keep)
        elif what == "held":
            ids = whole_numbers(event["prompt_ids"])
            self._held[ids] = (ids, whole_numbers(event["answer_ids"]))
        elif what == "dropped":
            self.cases = tuple(case for case in self.cases if case.prompt_ids != whole_numbers(event["prompt_ids"]))
        elif what == "paraphrase":
            self.paraphrases.append(str(event["prompt"]))
        elif what == "neighbour":
            self.neighbours.append(str(event["prompt"]))
        if "adapter_on" in event:
            self.stand(event)

    def stand(self, event: Event) -> None:
        """Which adapter stands from here on."""
        number = event.get("adapter", self.stands[0])
        if number == len(self._versions):
            self._versions.append(None)  # the base, where the session began with an adapter
        if not 0 <= number < len(self._versions):
            raise ValueError(f"there is no adapter {number}")
        self.stands = (number, bool(event["adapter_on"]))

    def follow_scorecard(self, event: Event) -> None:
        with suppress(SessionError):  # only what /mend offers hangs on it
            self._card = store.from_json(Scorecard, event)


def whole_numbers(value: Any) -> tuple[int, ...]:
    """Token ids from a file. Raises ValueError."""
    if not isinstance(value, list) or not all(type(id_) is int for id_ in value):
        raise ValueError("expected token ids")
    return tuple(value)


def anchors_of(event: Event) -> tuple[Anchor, ...]:
    """The anchors of an accept event."""
    return tuple(store.anchor_from_json(anchor) for anchor in event["anchors"])
