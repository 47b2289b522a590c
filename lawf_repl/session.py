"""One sitting with one model: the only mutable state of lawf. Its verbs yield records; nothing here prints.

A prompt is answered, the answer corrected token by token along a tree of immutable nodes, accepted as a case, and all
cases are trained into one adapter. Whatever happens is also an event, written to the session file if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lawf_repl import store
from lawf_repl.config import Settings, with_setting
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.errors import FixError, LawfError, NothingToFix, SessionError, TrainingError
from lawf_repl.learn.adapter import Adapter, Weights
from lawf_repl.learn.train import check_cases, train
from lawf_repl.measure.probes import ProbeSet
from lawf_repl.measure.scorecard import answer_text, measure
from lawf_repl.records import (
    Alternative,
    Anchor,
    Case,
    Completion,
    Correction,
    CorrectionKind,
    Message,
    Node,
    Rerun,
    Scorecard,
    Token,
    TrainingResult,
    TrainStep,
)
from lawf_repl.spans import encode_behind, first_word, group_start, lead_of, position_of

Stop = Callable[[], bool]


@dataclass(frozen=True)
class _Kept:
    """The adapter before a training, as far as it is needed to have it back."""

    weights: Weights
    on: bool
    from_file: bool
    settings: Settings
    training: TrainingResult | None


def never() -> bool:
    return False


class Session:
    """State and verbs. Positions count the current answer's tokens from 0; verbs that generate poll `stop` between tokens."""

    def __init__(self, engine: Engine, settings: Settings, probes: ProbeSet | None = None, file: store.SessionFile | None = None) -> None:
        self.engine, self.settings, self.file = engine, settings, file
        self.probes = probes or ProbeSet()
        self.decoder = Decoder(engine)
        self.node: Node | None = None
        self.nodes: list[Node] = []
        self.cases: tuple[Case, ...] = ()
        self.training: TrainingResult | None = None
        self.paraphrases: list[str] = []
        self.neighbours: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._messages: tuple[Message, ...] = ()
        self._prompt_ids: tuple[int, ...] = ()
        self._asked_with = self._sampling()
        self._redo: list[Node] = []
        self._firsts: dict[tuple[int, ...], tuple[Completion, Sampling]] = {}  # base answer of each accepted prompt
        self._case_messages: dict[tuple[int, ...], tuple[Message, ...]] = {}
        self._adapter: Adapter | None = None
        self._previous: _Kept | None = None                                    # what discard_training goes back to
        self._trained_with = settings                                          # rank and layers of the adapter in use
        if settings.adapter:
            self._adapter = Adapter.load(engine.model, settings.adapter)

    # -- what the front shows ----------------------------------------------------------------------------------------

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
    def has_adapter(self) -> bool:
        return self._adapter is not None

    @property
    def adapter_on(self) -> bool:
        return self._adapter is not None and self._adapter.on

    @property
    def prompt_text(self) -> str:
        return self._messages[-1]["content"] if self._messages else ""

    def set_setting(self, name: str, value: str) -> None:
        """Change a setting by its name; those of loading need a new start. Raises UsageError."""
        self.settings = with_setting(self.settings, name, value)

    def set_system(self, text: str) -> None:
        self.settings = replace(self.settings, system=text or None)

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
        self._messages, self._prompt_ids, self._asked_with = messages, ids, self._sampling()
        self.node, self.nodes, self._redo = None, [], []
        self._record("prompt", messages=list(messages), prompt_ids=list(ids))
        return self._generate((), (), None, frozenset(), stop)

    def lead(self, position: int) -> str:
        """The white space that a fix typed over the token at `position` starts with, until the user toggles it."""
        tokens = self._answer().tokens
        return lead_of(tokens[position].text) if position < len(tokens) else ""

    def preview(self, position: int, text: str) -> tuple[Token, ...]:
        """The tokens that a typed fix becomes, with their p and rank. Raises FixError."""
        position, kept = self._kept(position)
        return self.decoder.tokens(kept, encode_behind(self.engine.tokenizer, kept, text)) if text else ()

    def alternatives(self, position: int, count: int) -> tuple[Alternative, ...]:
        """More alternatives at a position than were recorded with its token."""
        answer = self._answer()
        return self.decoder.alternatives([*answer.prompt_ids, *answer.ids[:position]], count)

    # -- correcting --------------------------------------------------------------------------------------------------

    def replace(self, position: int, text: str, stop: Stop = never) -> Iterator[Token]:
        """Put `text`, exactly, behind the tokens before `position`; the model goes on from there.

        Raises FixError if the text cannot be written in tokens, NothingToFix if it stands there already.
        """
        if not text:
            raise FixError("the fix is empty: type the right text, or use delete or end here")
        position, kept = self._kept(position)
        return self._correct("replace", position, encode_behind(self.engine.tokenizer, kept, text), text, stop)

    def pick(self, position: int, token_id: int, stop: Stop = never) -> Iterator[Token]:
        """Put one token of the vocabulary at `position`."""
        self._check(position)
        return self._correct("end" if token_id in self.engine.end_ids else "replace", position, [token_id], self.engine.token_text(token_id), stop)

    def delete(self, position: int, count: int = 1, stop: Stop = never) -> Iterator[Token]:
        """Leave out `count` tokens; the text behind them comes next, and where none is left the answer ends."""
        tokens = self._answer().tokens
        position = group_start([token.text for token in tokens], position)
        self._check(position)
        behind = tokens[position + max(count, 1):]
        while behind and position + count < len(tokens) and tokens[position + count - 1].text == "" and not tokens[position + count - 1].special:
            count += 1  # the rest of a character goes with its first token
            behind = tokens[position + count:]
        if not behind:
            return self.end(position, stop)
        whole = next((i + 1 for i, token in enumerate(behind) if token.text), len(behind))
        while whole < len(behind) and all(a.id == b.id for a, b in zip(behind[:whole], tokens[position:], strict=False)):
            whole += 1  # a repeated token: the first that differs shows that one was left out
        return self._correct("delete", position, [token.id for token in behind[:whole]], "", stop)

    def end(self, position: int, stop: Stop = never) -> Iterator[Token]:
        """Let the answer end at `position`: the end-of-turn token becomes the anchor."""
        position, _ = self._kept(position)
        return self._correct("end", position, [self._end_id()], "", stop)

    def go_on(self, text: str, stop: Stop = never) -> Iterator[Token]:
        """Append `text` where the answer ended; its first token competes with the end-of-turn token."""
        answer = self._answer()
        position = len(answer.tokens) - (1 if answer.finish == "eos" else 0)
        position, kept = self._kept(position)
        return self._correct("go_on", position, encode_behind(self.engine.tokenizer, kept, text), text, stop)

    def fix(self, old: str, new: str, stop: Stop = never) -> Iterator[Token]:
        """Correct by text: the first `old` in the answer becomes `new`, and the model goes on. An empty `new` deletes.

        Raises FixError where `old` does not stand in the answer.
        """
        answer = self._answer()
        if not old:
            return self.go_on(new, stop)
        offset = answer.text.find(old)
        if offset < 0:
            raise FixError(f"{old!r} does not stand in the answer {_short(answer.text)!r}: give the text exactly as it is shown")
        if old == new:
            raise NothingToFix(f"nothing to fix: {old!r} stands there already")
        position, into = position_of([token.text for token in answer.tokens], offset)
        text, rest = answer.text[offset - into:offset] + new, answer.text[offset + len(old):]
        position, kept = self._kept(position)
        standing = answer.ids[position:]
        ids = encode_behind(self.engine.tokenizer, kept, text) if text else []
        while tuple(ids) == standing[:len(ids)] or not new:
            # Only leaving something out: what comes next, or the end, shows that it is gone.
            new = new or old
            word = first_word(rest)
            if not word:
                ids.append(self._end_id())
                break
            text, rest = text + word, rest[len(word):]
            ids = encode_behind(self.engine.tokenizer, kept, text)
        return self._correct("replace", position, ids, text, stop)

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
            position, shown = departure(answer.tokens, text)
            rest = text[len(shown):]
            if not rest:
                yield from self.end(position, stop)
            elif answer.finish == "eos" and position == len(answer.tokens) - 1:
                yield from self.go_on(first_word(rest), stop)
            else:
                yield from self.replace(position, first_word(rest), stop)
        raise FixError(f"the wanted text was not reached: the answer stands at {_short(self._answer().text)!r}")

    def undo(self) -> bool:
        """Back to the answer before the last correction; False where there is none."""
        if self.node is None or self.node.parent is None:
            return False
        self._redo.append(self.node)
        self.node = self.nodes[self.node.parent]
        self._record("undo", node=self.node.id)
        return True

    def redo(self) -> bool:
        if not self._redo:
            return False
        self.node = self._redo.pop()
        self._record("undo", node=self.node.id)
        return True

    def anchors(self) -> tuple[Anchor, ...]:
        """The anchors of the current answer: where a fix stands that the base would not surely choose (rule 3 of the design),
        and where the adapted model went on otherwise than the base would (rule 5)."""
        if self.node is None:
            return ()
        tokens: Sequence[Token] = self.node.completion.tokens
        if self.node.adapted:
            with self._switched(False):
                tokens = self.decoder.tokens(self._prompt_ids, self.node.completion.ids)
        out = []
        for position, token in enumerate(tokens):
            fixed = position in self.node.fix_positions and (token.rank > 0 or token.p < self.settings.target_p)
            if fixed or (position in self.node.adapted_positions and token.rank > 0):
                other = next((a for a in token.alternatives if a.id != token.id), None)
                out.append(Anchor(position, other.id if other else token.id, token.id, other.text if other else token.text,
                                  self.engine.token_text(token.id), self.settings.confidence, token.p))
        return tuple(out)

    def accept(self) -> Case:
        """Make the current answer the case of its prompt. Raises FixError for an unfinished answer, NothingToFix without a correction."""
        answer = self._answer()
        if answer.finish == "interrupted":
            raise FixError("the answer was stopped before its end: end it here, or correct a token so that it goes on")
        anchors = self.anchors()
        if not anchors:
            raise NothingToFix("nothing to accept: no token was corrected")
        case = Case(self.prompt_text, self._prompt_ids, answer.ids, anchors, answer_text(self.engine, self._prompt_ids, answer.ids))
        self.cases = (*(other for other in self.cases if other.prompt_ids != case.prompt_ids), case)
        self._firsts.pop(case.prompt_ids, None)
        if not self.nodes[0].adapted:
            self._firsts[case.prompt_ids] = (self.nodes[0].completion, self._asked_with)
        self._case_messages[case.prompt_ids] = self._messages
        self._record("accept", completion_ids=list(answer.ids), text=answer.text, anchors=[store.anchor_to_json(a) for a in anchors])
        return case

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, stop: Stop = never) -> Iterator[TrainStep]:
        """Train one adapter on all cases; afterwards it is on and `training` says how it went.

        Raises TrainingError at the call, before anything has changed.
        """
        if not self.cases:
            raise TrainingError("nothing to train: correct an answer and accept it first")
        check_cases(self.cases)
        return self._train(stop)

    def _train(self, stop: Stop) -> Iterator[TrainStep]:
        kept = self._adapter
        self._previous = _Kept(kept.snapshot(), kept.on, kept.from_file, self._trained_with, self.training) if kept else None
        finished = False
        try:
            if kept is None or not kept.from_file:  # cases are all learned again; only a loaded adapter is built upon
                if kept:
                    kept.remove()
                self._adapter = None
                self._adapter, self._trained_with = Adapter.fresh(self.engine.model, self.settings, self.engine.name), self.settings
            assert self._adapter is not None
            self._adapter.switch(True)
            self.training = yield from train(self._adapter, self.cases, self.probes.replay, self.settings, stop)
            finished = True
        finally:
            self.decoder.drop_cache()
            if not finished:  # whatever ended it: what was there before is there again
                self.discard_training()
        self._record("training", **store.to_json(self.training))

    def discard_training(self) -> None:
        """Go back to the adapter before the last training, or to none."""
        previous, self._previous = self._previous, None
        self.training = previous.training if previous else None
        if self._adapter is not None and (previous is None or not previous.from_file):
            self._adapter.remove()
            self._adapter = None
        if previous is not None:
            if self._adapter is None:
                self._adapter = Adapter.fresh(self.engine.model, previous.settings, self.engine.name)
                self._trained_with = previous.settings
            self._adapter.restore(previous.weights)
            self._adapter.switch(previous.on)
        self.decoder.drop_cache()
        self._record("note", text="the last training was discarded")

    def switch_adapter(self, on: bool) -> None:
        """Turn the adapter on or off; the cache is dropped, since it holds the other's states. Raises TrainingError without one."""
        if self._adapter is None:
            raise TrainingError("there is no adapter yet: train one, or start with --adapter DIR")
        self._adapter.switch(on)
        self.decoder.drop_cache()

    def reset_adapter(self) -> None:
        """Take the adapter out: the model is the base again."""
        if self._adapter is not None:
            self._adapter.remove()
            self._record("note", text="the adapter was taken out")
        self._adapter = self._previous = self.training = None
        self.decoder.drop_cache()

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
                         accepted=case.accepted, after=after.text, after_ids=list(after.ids), fixed=rerun.fixed)
            out.append(rerun)
        return tuple(out)

    def scorecard(self, reruns: Sequence[Rerun], stop: Stop = never) -> Scorecard:
        """Reliability, and what was given of paraphrases (of the last accepted case), neighbours and probes.

        Where `stop()` is true, what was not measured yet is left out.
        """
        if self._adapter is None or not reruns:
            raise TrainingError("there is no adapter to measure: train one first")
        with self._switched(True):
            card = measure(self.engine, self._adapter, reruns, [(self._asked(text), reruns[-1].accepted) for text in self.paraphrases],
                           [self._asked(text) for text in self.neighbours], self.probes.probes, self.settings.max_tokens, stop)
        self._record("scorecard", **store.to_json(card))
        return card

    def add_paraphrase(self, text: str) -> None:
        self._check_prompt(text)
        self.paraphrases.append(text)

    def add_neighbour(self, text: str) -> None:
        self._check_prompt(text)
        self.neighbours.append(text)

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str) -> str:
        """Write everything that happened so far to a new session file, the adapter beside it; returns the path."""
        if self._adapter is not None:
            refuse_existing(store.adapter_path(Path(path)))
        with store.SessionFile.create(Path(path), self.engine.fingerprint()) as file:
            for type_, fields in self.events:
                file.append(type_, **fields)
            if self._adapter is not None:
                folder = store.adapter_path(Path(path))
                self.save_adapter(str(folder))
                file.append("adapter", path=folder.name, sha256=store.directory_sha256(folder))
        return path

    def save_adapter(self, path: str) -> str:
        """Write the adapter as a standard peft directory; returns the path. Raises TrainingError without one, SessionError on disk trouble."""
        if self._adapter is None:
            raise TrainingError("there is no adapter to save: train one first")
        refuse_existing(Path(path))
        try:
            self._adapter.save(path)
        except OSError as error:
            raise SessionError(f"the adapter could not be written to {path}: {error.strerror or error}") from error
        return path

    def record_adapter(self, folder: Path) -> None:
        """Note a saved adapter in the session file."""
        beside = self.file is not None and folder == store.adapter_path(self.file.path)
        self._record("adapter", path=folder.name if beside else str(folder.absolute()), sha256=store.directory_sha256(folder))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _asked(self, text: str) -> tuple[Message, ...]:
        """`text` in place of the last case's question, in its conversation."""
        messages = self._case_messages[self.cases[-1].prompt_ids] if self.cases else self._messages
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return (*(messages[:-1] or system), {"role": "user", "content": text})

    def _answer(self) -> Completion:
        if self.node is None:
            raise FixError("there is no answer yet: ask something first")
        return self.node.completion

    def _check(self, position: int) -> None:
        answer = self._answer()
        last = len(answer.tokens) - (1 if answer.finish == "eos" else 0)  # nothing stands behind the end-of-turn token
        if not 0 <= position <= last:
            raise FixError(f"position {position} lies outside the answer: give one from 0 to {last}")

    def _check_prompt(self, text: str) -> None:
        """Refuse a prompt that cannot be asked. Raises PromptError."""
        self.decoder.limit(self.engine.prompt_ids(self._asked(text)), self._sampling())

    def _end_id(self) -> int:
        if self.engine.end_id is None:
            raise FixError(f"{self.engine.name} has no end-of-turn token: its answers cannot be ended")
        return self.engine.end_id

    def _kept(self, position: int) -> tuple[int, list[int]]:
        """(position moved left to a whole character, ids of prompt and answer before it)."""
        self._check(position)
        answer = self._answer()
        position = group_start([token.text for token in answer.tokens], position)
        return position, [*answer.prompt_ids, *answer.ids[:position]]

    def _correct(self, kind: CorrectionKind, position: int, ids: list[int], text: str, stop: Stop) -> Iterator[Token]:
        answer = self._answer()
        standing, first = answer.ids, position
        while ids and position < len(standing) and standing[position] == ids[0]:
            position, ids = position + 1, ids[1:]  # what is right stays as it was generated
        if not ids:
            raise NothingToFix(f"nothing to fix: {text!r} stands there already" if text else "nothing to fix: the answer goes on that way already")
        room = self.decoder.limit(self._prompt_ids, self._sampling())
        if position + len(ids) > room:
            raise FixError(f"the answer would pass {room} tokens: raise --max-tokens, or shorten the prompt where the context is full")
        correction = Correction(kind, position, text, tuple(ids), standing[position:])
        node = self.node
        assert node is not None
        fixed = frozenset(p for p in node.fix_positions if p < position) | frozenset(range(position, position + len(ids)))
        generated = self._generate(answer.tokens[:position], tuple(ids), correction, fixed, stop)
        return chain(answer.tokens[first:position], generated)

    def _generate(self, known: Sequence[Token], forced: Sequence[int], correction: Correction | None, fixed: frozenset[int],
                  stop: Stop = never) -> Iterator[Token]:
        parent = self.node
        adapted = frozenset(p for p in parent.adapted_positions if p < len(known)) if parent else frozenset()
        try:
            yield from self.decoder.generate(self._prompt_ids, forced, self._sampling(), stop, known)
        finally:
            answer = self.decoder.last
            if answer is not None and answer.prompt_ids == self._prompt_ids and len(answer.tokens) >= len(known) + len(forced):
                if self.adapter_on:
                    adapted |= frozenset(range(len(known) + len(forced), len(answer.tokens)))
                mixed = self.adapter_on or (parent is not None and parent.adapted)
                self.node = Node(len(self.nodes), parent.id if parent else None, answer, correction, fixed, adapted, mixed)
                self.nodes.append(self.node)
                self._redo = []
                if correction:
                    self._record("correction", node=self.node.id, parent=self.node.parent, adapter_on=self.adapter_on,
                                 **store.correction_to_json(correction))
                self._record("completion", node=self.node.id, adapter_on=self.adapter_on, **store.completion_to_json(answer))

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
            self.switch_adapter(on)
        try:
            yield
        finally:
            if self._adapter is not None and self.adapter_on != was:
                self.switch_adapter(was)

    def _record(self, type_: str, **fields: Any) -> None:
        self.events.append((type_, fields))
        if self.file is not None:
            self.file.append(type_, **fields)


def refuse_existing(path: Path) -> None:
    """Raise SessionError where something stands at `path` already; an empty folder may be filled."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SessionError(f"{path} exists already: name another place, nothing was overwritten")


def departure(tokens: Sequence[Token], text: str) -> tuple[int, str]:
    """(position, text before it) of the first token at which an answer departs from `text`."""
    shown, position = "", 0
    for i, token in enumerate(tokens):
        if token.special or not text.startswith(shown + token.text):
            break
        shown += token.text
        if token.text:  # a whole character was reached: the tokens up to here stand
            position = i + 1
    return position, shown


def open_session(engine: Engine, settings: Settings, probes: ProbeSet | None = None, path: Path | None = None) -> Session:
    """A session, with its file where a path is given. Raises SessionError where the file cannot be made."""
    file = store.SessionFile.create(path, engine.fingerprint()) if path else None
    try:
        return Session(engine, settings, probes, file)
    except LawfError:
        if file:
            file.close()
        raise


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
