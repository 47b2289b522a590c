"""One sitting with one model: the only mutable state of lawf. Its verbs yield records; nothing here prints.

A prompt is answered, the answer corrected token by token along a tree of immutable nodes, accepted as a case, and all
cases are trained into one adapter. Whatever happens is also an event, written to the session file if there is one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lawf_repl import __version__, corrections, store
from lawf_repl.config import FIELDS, Settings, with_setting
from lawf_repl.course import Course, watched
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.errors import FixError, LawfError, NothingToFix, SessionError, TrainingError, UsageError, first_line
from lawf_repl.learn.adapter import Adapter, find_targets, rank_for
from lawf_repl.learn.batch import Pair
from lawf_repl.learn.conflicts import check_cases, conflict_text, conflicts
from lawf_repl.learn.train import train
from lawf_repl.learn.variations import Varied, together, variations
from lawf_repl.measure.answers import weights_sha256
from lawf_repl.measure.probes import ProbeSet, base_answers
from lawf_repl.measure.prompts import Prompts
from lawf_repl.measure.scorecard import answer_text, measure
from lawf_repl.nodes import answered_node, trained_node
from lawf_repl.places import typed
from lawf_repl.records import (
    Alternative,
    Anchor,
    Case,
    Check,
    Completion,
    Correction,
    CorrectionKind,
    Message,
    Node,
    Progress,
    Rerun,
    Scorecard,
    Token,
    TrainingResult,
    TrainStep,
)
from lawf_repl.spans import encode_behind, first_word, lead_of
from lawf_repl.versions import Version

Stop = Callable[[], bool]
AT_START = frozenset({"model", "revision", "adapter", "device", "dtype", "device_map", "quantize", "trust_remote_code", "offline",
                      "template_args", "replay_prompts", "probes", "json", "plain", "vi", "theme", "history", "mouse",
                      "keys"})  # settings that have had their effect when a session begins
RECIPE = ("rank", "layers", "scope", "seed", "target_p", "goal_p", "variations", "hold", "rounds", "pull", "max_steps",
          "max_seconds")  # of a training
VARIED = 2048  # variations of all cases together at most: every look at them is a pass over all
NOT_RECORDED = frozenset({"model", "revision", "adapter", "device", "device_map", "trust_remote_code", "offline", "json", "plain", "vi",
                          "theme", "history", "mouse", "keys"})
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")  # whose versions can change what a model answers
WATCHED = 8  # probes whose drift is shown while training runs


@dataclass(frozen=True)
class Question:
    """What was asked: a root of the tree."""

    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


def never() -> bool:
    return False


class Session:
    """State and verbs. Positions count the current answer's tokens from 0; verbs that generate poll `stop` between tokens."""

    def __init__(self, engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None = None,
                 file: store.SessionFile | None = None) -> None:
        find_targets(engine.model, settings.layers)  # a model that cannot be trained is refused before it answers
        self.engine, self.settings, self._began = engine, settings, settings
        self.journal = store.Journal(self._opening, file)
        self._prompts = probes if isinstance(probes, Prompts) else None        # until the base has answered them all
        self.probes = probes.answered if isinstance(probes, Prompts) else probes or ProbeSet()
        self.decoder = Decoder(engine)
        self._base = Decoder(engine)         # only ever used with the adapter off: its states stay those of the base
        self.node: Node | None = None
        self.nodes: list[Node] = []          # of all prompts; a first answer has no parent
        self.cases: tuple[Case, ...] = ()
        self.training: TrainingResult | None = None
        self.paraphrases: list[str] = []
        self.neighbours: list[str] = []
        self._question = Question()
        self._questions: dict[int, Question] = {}                             # by the id of the root
        self._redo: list[Node] = []
        self._judged: dict[int, tuple[Completion, tuple[Token, ...]]] = {}     # what the base thinks of an answer, by id()
        self._firsts: dict[tuple[int, ...], tuple[Completion, Sampling]] = {}  # base answer of each accepted prompt
        self._case_messages: dict[tuple[int, ...], tuple[Message, ...]] = {}
        self._varied: dict[tuple[object, ...], Varied] = {}
        self._preparing = 0.0                                                  # seconds that the next training has taken already
        self._held: dict[tuple[int, ...], Pair] = {}                           # prompts whose answers are to stay, with the base's
        self._own_probes: dict[tuple[int, ...], Pair] = {}                     # the user's further probes, with the base's answers
        self._card: Scorecard | None = None                                    # the last one
        self._adapter: Adapter | None = None
        self._versions: list[Version | None] = [None]                         # every adapter so far; None is no adapter
        self._adapter_trouble: SessionError | None = None                      # why the one in place is not on the disk
        self._version = 0                                                      # the one in place
        self._structure: tuple[object, ...] = ()                               # of the adapter in place
        if settings.adapter:
            self._adapter = Adapter.load(engine.model, settings.adapter)
            loaded = Version(self._adapter.snapshot(), settings.adapter, settings, None)
            self._versions, self._structure = [loaded], loaded.structure
            self._record("adapter", path=str(Path(settings.adapter).absolute()), sha256=store.directory_sha256(Path(settings.adapter)), loaded=True)

    def _opening(self) -> tuple[dict[str, str], dict[str, Any]]:
        """What a session file begins with: what the model is, and what an answer depends on besides."""
        return self.engine.fingerprint(), opening_note(self.engine, self._began)

    # -- what the front shows ----------------------------------------------------------------------------------------

    @property
    def file(self) -> store.SessionFile | None:
        return self.journal.file

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Everything that happened, by type."""
        return [(event["type"], event) for event in self.journal.events]

    @property
    def place(self) -> Path | None:
        """Where the session is saved; None where it is not."""
        return self.journal.file.path if self.journal.file is not None else None

    @property
    def trouble(self) -> SessionError | None:
        """What went wrong when something was saved that is not on the disk yet."""
        return self.journal.trouble or self._adapter_trouble

    @property
    def unsaved(self) -> str:
        """Why the last events are not on the disk, in a line for the user; empty where they are."""
        trouble = self.trouble
        return f"{trouble}; nothing is lost while lawf runs: /save NAME writes it elsewhere" if trouble else ""

    @property
    def model_name(self) -> str:
        return self.engine.name

    @property
    def device(self) -> str:
        return str(self.engine.device)

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    @property
    def notes(self) -> list[str]:
        return self.engine.notes

    @property
    def adapter(self) -> Adapter | None:
        """The adapter in place, for what works on it outside of a session."""
        return self._adapter

    @property
    def has_adapter(self) -> bool:
        return self._adapter is not None

    @property
    def adapter_on(self) -> bool:
        return self._adapter is not None and self._adapter.on

    @property
    def prompt_text(self) -> str:
        return self._question.messages[-1]["content"] if self._question.messages else ""

    def set_setting(self, name: str, value: str) -> None:
        """Change a setting by its name. Raises UsageError, also for one of loading, which would have no effect any more."""
        if name.strip().replace("-", "_") in AT_START:
            raise UsageError(f"{name.strip()} is read when lawf starts: leave, and start it with --{name.strip().replace('_', '-')}")
        self._set(with_setting(self.settings, name, value))

    def set_system(self, text: str) -> None:
        self._set(replace(self.settings, system=text or None))

    def _set(self, settings: Settings) -> None:
        before, self.settings = recorded_settings(self.settings), settings
        changed = {name: value for name, value in recorded_settings(settings).items() if value != before[name]}
        if changed:
            self._record("note", text=f"set {', '.join(changed)}", what="settings", settings=changed)

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, prompt: str | Sequence[Message], stop: Stop = never) -> Iterator[Token]:
        """Answer a prompt, or a conversation given as messages. Raises PromptError at the call."""
        if isinstance(prompt, str):
            system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
            messages = (*system, {"role": "user", "content": prompt})
        else:
            messages = tuple(prompt)
        ids = self.engine.prompt_ids(messages)
        self.decoder.limit(ids, self._sampling())  # refuses what does not fit
        question = Question(messages, ids, self._sampling())
        self._record("prompt", messages=list(messages), prompt_ids=list(ids), sampling=store.to_json(question.sampling))
        return self._generate((), None, stop, question)

    def follow_up(self, text: str, stop: Stop = never) -> Iterator[Token]:
        """Say `text` behind the current answer: the conversation goes on. Where there is none it begins. Raises PromptError at the call."""
        if self.node is None:
            return self.ask(text, stop)
        answer = self.node.completion
        messages = (*self._question.messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": text})
        ids = self.engine.follow_up_ids(answer.prompt_ids, answer.ids, messages)
        self.decoder.limit(ids, self._sampling())
        question = Question(messages, ids, self._sampling())
        self._record("prompt", messages=list(messages), prompt_ids=list(ids), sampling=store.to_json(question.sampling), behind=self.node.id)
        return self._generate((), None, stop, question)

    def new_conversation(self) -> None:
        """The next question is a first one; the tree and the cases stay."""
        self.node, self._question, self._redo = None, Question(), []

    @property
    def turn(self) -> int:
        """Which question of the conversation was asked last, from 1; 0 before the first."""
        return sum(message["role"] == "user" for message in self._question.messages)

    @property
    def cached(self) -> int:
        """Tokens whose states stand in the cache."""
        return self.decoder.cached

    def lead(self, position: int) -> str:
        """The white space that a fix typed over the token at `position` starts with, until the user toggles it."""
        tokens = self._answer().tokens
        while position < len(tokens) and tokens[position].partial:
            position += 1  # the last token of a character shows it, with what stands before it
        return lead_of(tokens[position].text) if position < len(tokens) else ""

    def preview(self, position: int, text: str) -> tuple[Token, ...]:
        """The tokens that a typed fix becomes, with their p and rank. Raises FixError."""
        position, kept = corrections.kept(self._answer(), position)
        return self.decoder.tokens(kept, encode_behind(self.engine.tokenizer, kept, text)) if text else ()

    def reference(self) -> tuple[float, ...] | None:
        """The frozen base's probability of each token of the answer, where another model gave some of them; else None."""
        if self.node is None or not (self.node.adapted or self.adapter_on):
            return None
        return tuple(token.p for token in self._judge(self.node.completion))

    def token_bytes(self, id_: int) -> bytes:
        """What a token is made of; for one that is only part of a character this is all there is to show."""
        return self.engine.tokenizer.token_bytes(id_)

    def alternatives(self, position: int, count: int) -> tuple[Alternative, ...]:
        """More alternatives at a position than were recorded with its token."""
        answer = self._answer()
        return self.decoder.alternatives([*answer.prompt_ids, *answer.ids[:position]], count)

    # -- correcting --------------------------------------------------------------------------------------------------

    def apply(self, correction: Correction, stop: Stop = never) -> Iterator[Token]:
        """Make a correction that was made before, id for id. Raises FixError where the answer that stands is another."""
        if correction.removed_ids != self._answer().ids[correction.position:]:
            raise FixError(f"the correction at position {correction.position} was made on another answer than the one that stands")
        return self._correct(correction, stop)

    def replace(self, position: int, text: str, stop: Stop = never) -> Iterator[Token]:
        """Put `text`, exactly, behind the tokens before `position`; the model goes on from there.

        Raises FixError if the text cannot be written in tokens, NothingToFix if it stands there already.
        """
        return self._correct(corrections.replacement(self.engine.tokenizer, self._answer(), position, text), stop, position)

    def pick(self, position: int, token_id: int, stop: Stop = never) -> Iterator[Token]:
        """Put one token of the vocabulary at `position`."""
        corrections.check(self._answer(), position)
        kind: CorrectionKind = "end" if token_id in self.engine.end_ids else "replace"
        return self._correct(corrections.settled(self._answer(), kind, position, [token_id], self.engine.token_name(token_id)), stop)

    def delete(self, position: int, count: int = 1, stop: Stop = never) -> Iterator[Token]:
        """Leave out `count` tokens; the text behind them comes next, and where none is left the answer ends."""
        return self._correct(corrections.deletion(self._answer(), position, count, self.engine.end_id), stop, position)

    def end(self, position: int, stop: Stop = never) -> Iterator[Token]:
        """Let the answer end at `position`: the end-of-turn token becomes the anchor."""
        return self._correct(corrections.ending(self._answer(), position, self._end_id()), stop)

    def go_on(self, text: str, stop: Stop = never) -> Iterator[Token]:
        """Append `text` where the answer ended; its first token competes with the end-of-turn token. Without a text, an answer that
        did not come to its end goes on by itself."""
        return self._correct(corrections.appending(self.engine.tokenizer, self._answer(), text), stop)

    def fix(self, old: str, new: str, stop: Stop = never) -> Iterator[Token]:
        """Correct by text: the first `old` in the answer becomes `new`, and the model goes on. An empty `new` deletes.

        Raises FixError where `old` does not stand in the answer.
        """
        return self._correct(corrections.substitution(self.engine.tokenizer, self._answer(), old, new, self.engine.end_id), stop)

    def want(self, text: str, stop: Stop = never) -> Iterator[Token]:
        """Correct until the answer is `text`: each time, the word at which the model departs, as a careful user would.

        Raises NothingToFix if the answer is `text` already, FixError if the text cannot be reached.
        """
        if self._answer().text == text and self._answer().finish == "eos":
            raise NothingToFix("nothing to fix: the answer is already the wanted text")
        if not text:
            return self.end(0, stop)
        return self._until(text, stop)

    def _until(self, text: str, stop: Stop) -> Iterator[Token]:
        for _ in range(2 * len(text) + 2):  # each correction adds at least one right character, or ends the answer
            answer = self._answer()
            if (answer.text == text and answer.finish != "interrupted") or stop():
                return
            position, shown = corrections.departure(answer.tokens, text)
            rest = text[len(shown):]
            if not rest:
                yield from self.end(position, stop)
            elif answer.finish == "eos" and position == len(answer.tokens) - 1:
                yield from self.go_on(first_word(rest), stop)
            else:
                yield from self.replace(position, first_word(rest), stop)
        raise FixError(f"the wanted text was not reached: the answer stands at {corrections.shortened(self._answer().text)!r}")

    def undo(self) -> bool:
        """Back to the node before the last correction or training; False where there is none."""
        if self.node is None or self.node.parent is None:
            return False
        left = self.node
        if left.training is not None:
            version = self._versions[left.adapter]
            self._install(*(version.before if version else (self._nothing(), False)))
        self._move(self.nodes[self.node.parent])
        self._redo.append(left)
        return True

    def redo(self) -> bool:
        """Forward again to where the last undo came from; False where there is none."""
        if not self._redo:
            return False
        node = self._redo[-1]
        if node.training is not None:
            self._install(node.adapter)
        self._move(node)
        self._redo.pop()
        return True

    def goto(self, node: int) -> None:
        """To any node of the tree, with its prompt and the adapter as it was then. Raises FixError for a number that is none."""
        if not 0 <= node < len(self.nodes):
            there = f"give one from 0 to {len(self.nodes) - 1}" if self.nodes else "there is none yet, ask something first"
            raise FixError(f"there is no answer {node} in the tree: {there}")
        target = self.nodes[node]
        if (target.adapter, target.adapter_on) != (self._version, self.adapter_on):
            self._install(target.adapter, target.adapter_on)
        self._redo = []
        self._move(target)

    def prompt_of(self, node: Node) -> str:
        """The question that a node of the tree answers."""
        return self._questions[self._root(node).id].messages[-1]["content"]

    def _move(self, node: Node) -> None:
        self.node, self._question = node, self._questions[self._root(node).id]
        self._record("undo", node=node.id, adapter=self._version, adapter_on=self.adapter_on)

    def _root(self, node: Node) -> Node:
        while node.parent is not None:
            node = self.nodes[node.parent]
        return node

    def anchors(self) -> tuple[Anchor, ...]:
        """The anchors of the current answer: where a fix stands that the base would not surely choose (rule 3 of the design),
        and where the adapted model chose otherwise than the base would (rule 5). A token that was only sampled is none."""
        node = self.node
        if node is None:
            return ()
        tokens: Sequence[Token] = node.completion.tokens
        if node.adapted:
            tokens = self._judge(node.completion)
        confidence = self._confidences(node)
        out = []
        for position, token in enumerate(tokens):
            fixed = position in node.fix_positions and (token.rank > 0 or token.p < self.settings.target_p)
            chosen = position in node.adapted_positions and node.completion.tokens[position].rank == 0  # greedily, by the adapted model
            if fixed or (chosen and token.rank > 0):
                other = next((a for a in token.alternatives if a.id != token.id), None)
                rejected = other.id if other else token.id
                out.append(Anchor(position, rejected, token.id, self.engine.token_name(rejected), self.engine.token_name(token.id),
                                  confidence[position], token.p))
        return tuple(out)

    def _judge(self, answer: Completion) -> tuple[Token, ...]:
        """An answer's tokens with the statistics of the base, whatever model they are from."""
        known = self._judged.get(id(answer))
        if known is None or known[0] is not answer:
            with self._adapter.off() if self._adapter is not None else nullcontext():
                known = self._judged[id(answer)] = (answer, self._base.tokens(answer.prompt_ids, answer.ids))
        return known[1]

    def sampled(self) -> int:
        """How many tokens of the answer neither the base would choose nor an anchor holds: sampling gave them, greedy generation will not."""
        answer = self._answer()
        anchors = {anchor.position for anchor in self.anchors()}
        tokens = self._judge(answer) if self.node is not None and self.node.adapted else answer.tokens
        return sum(token.rank > 0 and i not in anchors for i, token in enumerate(tokens))

    def _confidences(self, node: Node) -> list[float]:
        """For each position the confidence that was set when its token came in."""
        out = [node.confidence] * len(node.completion.tokens)
        while node.parent is not None:
            came_in = node.correction.position if node.correction else len(out)  # a training brought no token in
            node = self.nodes[node.parent]
            out[:came_in] = [node.confidence] * min(came_in, len(out))
        return out

    def accept(self) -> Case:
        """Make the current answer the case of its prompt. Raises FixError for an unfinished answer, NothingToFix without a correction."""
        answer = self._answer()
        if answer.finish == "interrupted":
            raise FixError("the answer was stopped before its end: go on, end it, or correct a token so that it goes on")
        anchors = self.anchors()
        if not anchors:
            raise NothingToFix("nothing to accept: no token was corrected")
        assert self.node is not None
        case = self._accept(self.node, anchors)
        self._record("accept", node=self.node.id, completion_ids=list(answer.ids), text=answer.text,
                     anchors=[store.anchor_to_json(a) for a in anchors])
        return case

    def _accept(self, node: Node, anchors: tuple[Anchor, ...]) -> Case:
        """The answer of the node where the session stands, as the case of its prompt."""
        answer = node.completion
        case = Case(self.prompt_text, answer.prompt_ids, answer.ids, anchors, answer_text(self.engine, answer.prompt_ids, answer.ids))
        self.cases = (*(other for other in self.cases if other.prompt_ids != case.prompt_ids), case)
        self._firsts.pop(case.prompt_ids, None)
        root = self._root(node)
        if not root.adapted:
            self._firsts[case.prompt_ids] = (root.completion, self._question.sampling)
        self._case_messages[case.prompt_ids] = self._question.messages
        return case

    def adopt(self, case: Case, messages: Sequence[Message]) -> None:
        """Take over a case that was accepted in another session on the same base, with the conversation that it answers."""
        self.cases = (*(other for other in self.cases if other.prompt_ids != case.prompt_ids), case)
        self._case_messages[case.prompt_ids] = tuple(messages)

    def conflicts(self) -> tuple[str, ...]:
        """A line for each two accepted answers that contradict each other: they cannot be trained together."""
        return tuple(conflict_text(*found) for found in conflicts(self.cases))

    def forget(self, number: int) -> Case:
        """Take the case with this number, from 0, out of what is trained. Raises TrainingError where there is none."""
        if not 0 <= number < len(self.cases):
            raise TrainingError(f"there is no accepted answer {number + 1}: {len(self.cases)} are there")
        case = self.cases[number]
        self.cases = (*self.cases[:number], *self.cases[number + 1:])
        self._record("note", text="an accepted answer was taken out of the training", what="dropped", prompt=case.prompt,
                     prompt_ids=list(case.prompt_ids))
        return case

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, stop: Stop = never) -> Iterator[TrainStep]:
        """Train one adapter on all cases; afterwards it is on, `training` says how it went, and it is a node of the tree.

        Raises TrainingError at the call, before anything has changed.
        """
        if not self.cases:
            raise TrainingError("nothing to train: correct an answer and accept it first")
        check_cases(self.cases)
        self.engine.mark(self.settings.scope)
        return self._train(stop)

    def _train(self, stop: Stop) -> Iterator[TrainStep]:
        for _ in self.prepare(stop):
            pass
        started, self._preparing = time.monotonic() - self._preparing, 0.0
        settings = replace(self.settings, rank=self.settings.rank or rank_for(len(self.cases)))
        replay = [*self._variations(), *self.probes.replay]
        result, was, course = None, (self._version, self.adapter_on), Course()
        try:
            if self._adapter is None or not self._adapter.from_file:  # cases are all learned again; only a loaded adapter is built upon
                self._remove_adapter()
                self._adapter = Adapter.fresh(self.engine.model, settings, self.engine.name, self.engine.mark(settings.scope))
                self._structure = ()  # until it is trained it is none of the versions
            self._adapter.switch(True)
            result = yield from watched(train(self._adapter, self.cases, replay, settings, stop, self.probes.probes[:WATCHED], started,
                                              list(self._held.values())), course)
        finally:
            self.decoder.drop_cache()
            if result is None:  # whatever ended it: what was there before is there again
                self._install(*was)
        before = self._versions[self._version]
        loaded = before.loaded if before is not None and self._adapter.from_file else None
        version = Version(self._adapter.snapshot(), loaded, settings, result, was)
        self._versions.append(version)
        self._version, self._structure, self.training = len(self._versions) - 1, version.structure, result
        parent = self.node
        if parent is not None:
            self._add(trained_node(len(self.nodes), parent, result, self._version, self.settings.confidence))
        recipe = {name: getattr(settings, name) for name in RECIPE}
        self._record("training", node=self.node.id if self.node else None, parent=parent.id if parent else None, adapter=self._version,
                     before=list(was), recipe=recipe, prompts=[list(case.prompt_ids) for case in self.cases], **store.to_json(result),
                     curve=store.to_json(course.curve()))
        self._keep_adapter()

    def prepare(self, stop: Stop = never) -> Iterator[Progress]:
        """What the base has to answer before a training can begin, which train() does too where it was not asked for before.

        What was done when `stop()` turns true need not be done again.
        """
        yield from self.answer_prompts(stop)
        missing = [case for case in self.cases if self._made_with(case) not in self._varied]
        for number, case in enumerate(missing):
            yield Progress("variations of the corrected prompt", number, len(missing))
            began = time.monotonic()
            with self._switched(False):
                made = variations(self.engine, case, self._case_messages[case.prompt_ids], self._varied_each(), self.settings.seed, stop,
                                  self.probes.replay)
            if stop():
                return
            self._varied[self._made_with(case)] = made
            self._preparing += time.monotonic() - began

    def answer_prompts(self, stop: Stop = never) -> Iterator[Progress]:
        """The base's answers to the probes and to the prompts that are held, as far as they are not known."""
        if self._prompts is not None:
            with self._switched(False):
                for done, of in self._prompts.answer(stop):
                    yield Progress("answers to general prompts, once for this model", done, of)
            self.probes = self._prompts.answered
            self._prompts = None if not self._prompts.missing() or not stop() else self._prompts

    def _made_with(self, case: Case) -> tuple[object, ...]:
        """What a case's variations depend on."""
        return case.prompt_ids, case.completion_ids, self._varied_each(), self.settings.seed

    def _variations(self) -> list[Pair]:
        """Prompts almost like those of the cases, with the base's answers; the same ones whenever the same cases are trained."""
        meant = {self.engine.prompt_ids(self._asked(text)) for text in self.paraphrases}  # these are to change with the case
        varied = [self._varied[key] for case in self.cases if (key := self._made_with(case)) in self._varied]
        return [pair for pair in together(varied) if tuple(pair[0]) not in meant]

    def _varied_each(self) -> int:
        """How many variations each case gets: halved until all of them together are few enough.

        Made anew with the smaller number, and not cut: what a case is about has its share of them.
        """
        count = self.settings.variations
        while count > 1 and count * len(self.cases) > VARIED:
            count //= 2
        return count

    def hold(self, prompt: str) -> None:
        """Keep the base's answer to `prompt` as it is, whatever is trained from now on: a case without corrections."""
        ids = self.engine.prompt_ids(self._asked(prompt))
        with self._switched(False):
            answer = base_answers(self.engine, [ids], self.settings.max_tokens)[0]
        self._held[ids] = (ids, answer)
        self._record("note", text="an answer is held", what="held", prompt=prompt, prompt_ids=list(ids), answer_ids=list(answer))

    def mend(self, stop: Stop = never) -> Iterator[tuple[str, Check]]:
        """Make what the last scorecard found wrong part of what is trained; yields ("case" or "held", what was found).

        A paraphrase becomes a case of its own, corrected toward the accepted answer; one that the base answers rightly, and a
        neighbour that changed, are held. Raises NothingToFix where all was right, FixError where an answer cannot be reached.
        """
        card = self._card
        wrong = [check for check in card.paraphrases if not check.ok] if card else []
        changed = [check for check in card.neighbours if not check.ok] if card else []
        if not wrong and not changed:
            raise NothingToFix("nothing to mend: /compare found no paraphrase wrong and no neighbour changed")
        return self._mend(wrong, changed, stop)

    def _mend(self, wrong: Sequence[Check], changed: Sequence[Check], stop: Stop) -> Iterator[tuple[str, Check]]:
        for check in wrong:
            done = "case"
            with self._switched(False):
                for _ in self.ask(self._asked(check.prompt), stop):
                    pass
                try:
                    for _ in self.want(check.expected, stop):
                        pass
                except NothingToFix:
                    done = "held"
            if stop():
                return
            if done == "held":
                self.hold(check.prompt)
            else:
                self.accept()
            yield done, check
        for check in changed:
            if stop():
                return
            self.hold(check.prompt)
            yield "held", check
        self._card = None  # these are done

    def discard_training(self) -> None:
        """Go back to the adapter before the last training, or to none."""
        version = self._versions[self._version]
        if self.node is not None and self.node.training is not None and self.node.adapter == self._version:
            self.undo()
        elif version is not None and version.training is not None:
            self._install(*version.before)
        self._record("note", text="the last training was discarded", what="adapter", adapter=self._version, adapter_on=self.adapter_on)

    def switch_adapter(self, on: bool) -> None:
        """Turn the adapter on or off. The cache holds the other's states: it is dropped, but for a prompt that the adapter leaves alone.

        Raises TrainingError without one.
        """
        if self._adapter is None:
            raise TrainingError("there is no adapter yet: train one, or start with --adapter DIR")
        self._switch(on)
        self._record("note", text=f"the adapter was switched {'on' if on else 'off'}", what="adapter", adapter=self._version, adapter_on=on)

    def _switch(self, on: bool) -> None:
        assert self._adapter is not None
        self._adapter.switch(on)
        self.decoder.drop_cache(self._adapter.reach)  # what stands before its mark is the base's either way

    def reset_adapter(self) -> None:
        """Take the adapter out: the model is the base again. The tree still has the adapter."""
        if self._adapter is not None:
            self._install(self._nothing())
            self._record("note", text="the adapter was taken out", what="adapter", adapter=self._version, adapter_on=False)

    def _install(self, number: int, on: bool = True) -> None:
        """Put one of the session's adapters in place, or none. Raises ModelError where its folder is no longer there.

        Whatever goes wrong or comes between, an interrupt too, leaves the base and says so, never half an adapter.
        """
        version, done = self._versions[number], False
        if version is not None and version.weights is None:
            raise TrainingError(version.absence)
        self.decoder.drop_cache()
        try:
            if version is None or self._adapter is None or self._structure != version.structure:
                self._remove_adapter()
            if version is not None:
                if self._adapter is None:
                    self._adapter = Adapter.load(self.engine.model, version.loaded) if version.loaded \
                        else Adapter.fresh(self.engine.model, version.settings, self.engine.name, self.engine.mark(version.settings.scope))
                assert version.weights is not None
                self._adapter.restore(version.weights)
                self._adapter.switch(on)
            done = True
        finally:
            if not done:
                self._remove_adapter()
                number, version = self._nothing(), None
            self._version, self._structure = number, version.structure if version else ()
            self.training = version.training if version else None

    def _nothing(self) -> int:
        """The number of a version without an adapter."""
        if None not in self._versions:
            self._versions.append(None)
        return self._versions.index(None)

    def _remove_adapter(self) -> None:
        if self._adapter is not None:
            self._adapter.remove()
        self._adapter = None

    def rerun(self, stop: Stop = never) -> tuple[Rerun, ...]:
        """Each case's prompt again, adapter off (as it was first asked) and on, in free greedy generation."""
        out = []
        for case in self.cases:
            first, sampling = self._firsts.get(case.prompt_ids, (None, self._sampling()))
            with self._switched(False):
                before = self._complete(case.prompt_ids, sampling, stop)
            with self._switched(True):
                after = self._complete(case.prompt_ids, Sampling(self.settings.max_tokens), stop)
            # an answer that was stopped by hand can only be compared as far as it came
            known = before.ids[:len(first.ids)] if first and first.finish == "interrupted" else before.ids
            rerun = Rerun(case.prompt, before, case.accepted, after, first is None or known == first.ids)
            self._record("rerun", prompt=case.prompt, before=before.text, before_ids=list(before.ids), before_matches=rerun.before_matches,
                         accepted=case.accepted, after=after.text, after_ids=list(after.ids), fixed=rerun.fixed,
                         adapter=self._version, after_completion=store.completion_to_json(after))
            out.append(rerun)
        return tuple(out)

    def both(self, prompt: str, stop: Stop = never) -> tuple[Completion, Completion]:
        """Any prompt answered greedily without and with the adapter, asked like the last case. Raises TrainingError without one."""
        if self._adapter is None:
            raise TrainingError("there is no adapter to compare: train one, or start with --adapter DIR")
        ids, sampling = self.engine.prompt_ids(self._asked(prompt)), Sampling(self.settings.max_tokens)
        out = []
        for on in (False, True):
            with self._switched(on):
                out.append(self._complete(ids, sampling, stop))
        return out[0], out[1]

    def scorecard(self, reruns: Sequence[Rerun], stop: Stop = never) -> Scorecard:
        """Reliability, and what was given of paraphrases (of the last accepted case), neighbours and probes.

        Where `stop()` is true, what was not measured yet is left out.
        """
        if self._adapter is None or not reruns:
            raise TrainingError("there is no adapter to measure: train one first")
        probes = (*self.probes.probes, *self._own_probes.values())
        with self._switched(True):
            card = measure(self.engine, self._adapter, reruns, [(self._asked(text), reruns[-1].accepted) for text in self.paraphrases],
                           [self._asked(text) for text in self.neighbours], probes, self.settings.max_tokens, stop)
        self._record("scorecard", **store.to_json(card))
        self._card = card
        return card

    def add_paraphrase(self, text: str) -> None:
        self._check_prompt(text)
        self.paraphrases.append(text)
        self._record("note", text="a paraphrase", what="paraphrase", prompt=text)

    def add_neighbour(self, text: str) -> None:
        self._check_prompt(text)
        self.neighbours.append(text)
        self._record("note", text="a neighbour", what="neighbour", prompt=text)

    def add_probe(self, text: str) -> None:
        """Measure drift on this prompt too, from the base's answer to it. Raises UsageError for one that is held: it would measure nothing."""
        ids = self.engine.prompt_ids(self._asked(text))
        if ids in self._held or any(tuple(prompt) == ids for prompt, _ in self.probes.replay):
            raise UsageError("this prompt's answer is held in training: drift has to be measured on others")
        with self._switched(False):
            answer = base_answers(self.engine, [ids], self.settings.max_tokens)[0]
        self._own_probes[ids] = (ids, answer)
        self._record("note", text="a probe was added", prompt=text, prompt_ids=list(ids), answer_ids=list(answer))

    # -- files -------------------------------------------------------------------------------------------------------

    def keep_in(self, folder: Path) -> None:
        """From the first question on, save everything as it happens in a file of `folder`, named by the time."""
        self.journal.keep_in(folder)

    def name(self, text: str) -> str:
        """Name the session as it was typed: a name in its folder, or a whole path; returns where it is now. Raises UsageError, SessionError."""
        folder = self.place.parent if self.place is not None else self.journal.folder or Path.cwd()
        return str(self.rename(typed(text, folder)))

    def rename(self, path: Path) -> Path:
        """Name the session: its file, adapters and lock go to `path`; returns it.

        Where that cannot be (it has no file, or one on another disk, or one that is full or was removed) everything is written
        anew at `path`, and the session goes on there. Raises SessionError where neither works; then nothing has changed.
        """
        file = self.journal.file
        if file is not None and self.trouble is None:
            try:
                file.rename(path)
                return path
            except SessionError:
                if path.exists() or store.adapter_path(path).exists():
                    raise
        self.journal.move_to(*self._copy(path))
        self._adapter_trouble = None
        return path

    def save(self, path: str) -> str:
        """Write everything that happened so far to a new session file, the adapter beside it; returns the path."""
        file, _ = self._copy(Path(path))
        file.close()
        return path

    def _copy(self, path: Path) -> tuple[store.SessionFile, list[store.Event]]:
        """A new session file that has everything, open, and the events that it has besides. Raises SessionError; then there is none."""
        refuse_existing(store.adapter_path(path))
        file, more, stood = self.journal.save(path), [], (self._version, self.adapter_on)
        made = [number for number, version in enumerate(self._versions) if version is not None and version.weights is not None and number != stood[0]]
        try:
            for number in [*(number for number in made if self._versions[number].training is not None), stood[0]]:  # type: ignore[union-attr]
                if number != self._version:
                    self._install(number)
                if self._adapter is not None:
                    sha256 = store.keep_adapter(path, self._write_adapter)
                    more.append(file.append("adapter", path=store.adapter_path(path).name, sha256=sha256, adapter=number))
        except BaseException:
            file.close()
            store.remove(path)
            raise
        finally:
            if (self._version, self.adapter_on) != stood:
                self._install(*stood)
        return file, more

    def save_adapter(self, path: str) -> str:
        """Write the adapter as a standard peft directory; returns the path. Raises TrainingError without one, SessionError on disk trouble."""
        if self._adapter is None:
            raise TrainingError("there is no adapter to save: train one first")
        refuse_existing(Path(path))
        try:
            self._write_adapter(Path(path))
        except OSError as error:
            raise SessionError(f"the adapter could not be written to {path}: {error.strerror or error}") from error
        return path

    def _write_adapter(self, folder: Path) -> None:
        """Raises OSError, whatever the library's own error is."""
        assert self._adapter is not None
        try:
            self._adapter.save(folder)
        except SafetensorError as error:
            raise OSError(first_line(error)) from error

    def _keep_adapter(self) -> None:
        """Put the adapter beside the session's file; like an event, it never interrupts."""
        file = self.journal.file
        if file is None:
            return
        try:
            sha256 = store.keep_adapter(file.path, self._write_adapter)
        except SessionError as error:
            self._adapter_trouble = error
        else:
            self._adapter_trouble = None
            self._record("adapter", path=store.adapter_path(file.path).name, sha256=sha256, adapter=self._version)

    def set_aside(self) -> Callable[[], None]:
        """Take the adapter off the model, which another session is about to use; returns what puts it back."""
        number, on = self._version, self.adapter_on
        self.decoder.drop_cache()
        self._remove_adapter()
        return lambda: self._install(number, on)

    def close(self) -> None:
        """Leave: the model is the base again, the file is closed."""
        if self._adapter_trouble is not None and self._adapter is not None:
            self._keep_adapter()  # there may be room by now
        self.decoder.drop_cache()
        self._remove_adapter()
        self._version, self._structure = self._nothing(), ()
        self.journal.close()

    def record_adapter(self, folder: Path) -> None:
        """Note a saved adapter in the session file."""
        beside = self.file is not None and folder == store.adapter_path(self.file.path)
        self._record("adapter", path=folder.name if beside else str(folder.absolute()), sha256=store.directory_sha256(folder))

    def record_export(self, format_: str, path: str, passed: bool) -> None:
        """Note that the adapter was exported, and whether the software it is for gave the accepted answers."""
        self._record("export", format=format_, path=path, passed=passed, adapter=self._version)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _asked(self, text: str) -> tuple[Message, ...]:
        """`text` in place of the last case's question, in its conversation."""
        if self.cases:
            return (*self._case_messages[self.cases[-1].prompt_ids][:-1], {"role": "user", "content": text})
        messages = self._question.messages
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return (*(messages[:-1] or system), {"role": "user", "content": text})

    def _answer(self) -> Completion:
        if self.node is None:
            raise FixError("there is no answer yet: ask something first")
        return self.node.completion

    def _check_prompt(self, text: str) -> None:
        """Refuse a prompt that cannot be asked. Raises PromptError."""
        self.decoder.limit(self.engine.prompt_ids(self._asked(text)), self._sampling())

    def _end_id(self) -> int:
        if self.engine.end_id is None:
            raise FixError(f"{self.engine.name} has no end-of-turn token: its answers cannot be ended")
        return self.engine.end_id

    def _correct(self, correction: Correction, stop: Stop, shown_from: int | None = None) -> Iterator[Token]:
        """Carry a correction out; yields from position `shown_from` on where tokens behind it were kept."""
        tokens, room = self._answer().tokens, self.decoder.limit(self._question.prompt_ids, self._sampling())
        if correction.position + max(len(correction.ids), 1) > room:
            raise FixError(f"the answer would pass {room} tokens: raise max_tokens, or shorten the prompt where the context is full")
        repeated = tokens[min(shown_from, correction.position):correction.position] if shown_from is not None else ()
        return chain(repeated, self._generate(tokens[:correction.position], correction, stop))

    def _generate(self, known: Sequence[Token], correction: Correction | None, stop: Stop = never,
                  question: Question | None = None) -> Iterator[Token]:
        """Behind `known`, what the correction puts there and what the model goes on with; a new node, however far it came.

        A new question takes the place of the one before with its first node: one that fails leaves the session where it was.
        """
        parent, asked = (self.node, self._question) if question is None else (None, question)
        prompt_ids, sampling = asked.prompt_ids, self._sampling()
        forced = correction.ids if correction else ()
        try:
            yield from self.decoder.generate(prompt_ids, forced, sampling, stop, known)
        finally:
            answer = self.decoder.last
            if answer is not None and answer.prompt_ids == prompt_ids and len(answer.tokens) >= len(known) + len(forced):
                node = answered_node(len(self.nodes), parent, answer, correction, self._version, self.adapter_on, self.settings.confidence)
                self._question = asked
                self._add(node)
                if correction:
                    self._record("correction", node=node.id, parent=node.parent, adapter_on=self.adapter_on, confidence=node.confidence,
                                 **store.correction_to_json(correction))
                self._record("completion", node=node.id, adapter=self._version, adapter_on=self.adapter_on, confidence=node.confidence,
                             sampling=store.to_json(sampling), **store.completion_to_json(answer))

    def _add(self, node: Node) -> None:
        """A new node of the tree, where the session stands now."""
        if node.parent is None:
            self._questions[node.id] = self._question
        self.nodes.append(node)
        self.node, self._redo = node, []

    def _complete(self, prompt_ids: Sequence[int], sampling: Sampling, stop: Stop) -> Completion:
        for _ in self.decoder.generate(prompt_ids, (), sampling, stop):
            pass
        assert self.decoder.last is not None
        return self.decoder.last

    def _sampling(self) -> Sampling:
        s = self.settings
        return Sampling(s.max_tokens, s.temperature, s.top_p, s.seed)

    @contextmanager
    def _switched(self, on: bool) -> Iterator[None]:
        """The adapter on or off inside, whatever the user's switch says; the cache never mixes the two."""
        was = self.adapter_on
        if self._adapter is not None and was != on:
            self._switch(on)
        try:
            yield
        finally:
            if self._adapter is not None and self.adapter_on != was:
                self._switch(was)

    def _record(self, type_: str, **fields: Any) -> None:
        self.journal.record(type_, **fields)


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """The settings that answers and trainings depend on, as a session file has them."""
    values = {name: getattr(settings, name) for name in FIELDS if name not in NOT_RECORDED}
    return values | {"template_args": dict(settings.template_args)}


@cache
def _version(name: str) -> str:
    """Of an installed library; each look-up reads its files."""
    return metadata.version(name)


def opening_note(engine: Engine, settings: Settings) -> dict[str, Any]:
    """The first event of a session, and of going on with one: with which software, on which device, under which settings."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}
    return {"text": f"recorded with lawf {__version__}, " + ", ".join(f"{name} {number}" for name, number in versions.items()), "what": "opened",
            "versions": versions, "device": engine.device.type, "weights_sha256": weights_sha256(engine.model),
            "settings": recorded_settings(settings)}


def refuse_existing(path: Path) -> None:
    """Raise SessionError where something stands at `path` already; an empty folder may be filled."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SessionError(f"{path} exists already: name another place, nothing was overwritten")


def open_session(engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None = None, path: Path | None = None) -> Session:
    """A session, with its file where a path is given. Raises SessionError where the file cannot be made."""
    file = store.SessionFile.create(path, engine.fingerprint()) if path else None
    try:
        return Session(engine, settings, probes, file)
    except LawfError:
        if file:
            file.close()
        raise
