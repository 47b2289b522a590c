"""Re-execution of a saved session: every answer is generated again and held against the file, token by token.

A token counts as equal where it is the one in the file, or where the two were within TIE of each other, now or then: greedy
choice between near-ties is decided by the last bits of a sum, which another device or number type rounds otherwise. After a tie
the file's token stands and the answer is gone on with, so that one tie hides nothing behind it. The first place that is
neither is the divergence; from there on the file is followed, so that what comes later is still checked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lawf_repl import store
from lawf_repl.agreement import Divergence, Row, Tie, Where, alike, anchor_difference, anchors_text, first_difference, tie
from lawf_repl.config import Settings
from lawf_repl.engine.base import Engine
from lawf_repl.engine.decode import Decoder, Sampling
from lawf_repl.errors import LawfError, SessionError
from lawf_repl.measure.probes import ProbeSet, measure_drift
from lawf_repl.measure.prompts import Prompts
from lawf_repl.records import Completion, Token, TrainingResult
from lawf_repl.restore import Followed, anchors_of, changed_parts, changed_surroundings, recorded, whole_numbers
from lawf_repl.session import Stop, never
from lawf_repl.store import Event, LoadedSession


def replay(path: Path, engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None = None, retrain: bool = False,
           stop: Stop = never, loaded: LoadedSession | None = None) -> Row:
    """One session again, on a model that carries no adapter; it carries none afterwards.

    `settings` are those of `restore.recorded`. With `retrain` trainings are made again, else the saved adapters are loaded. Raises
    nothing for what is wrong with the file: the row says it. What is interrupted by `stop` raises KeyboardInterrupt.
    """
    row, started = Row(str(path)), time.monotonic()
    try:
        loaded = loaded or store.load(path)
        _differences(row, loaded, engine)
        if "the tokenizer" in str(row.changed):
            row.status, row.error = "changed", "its ids mean other texts now: nothing was generated"
            return row
        again = Again(path, engine, settings, probes, loaded, row, retrain, stop)
        try:
            again.run()
        finally:
            again.close()
    except LawfError as error:
        row.status, row.error = "error", str(error)
    if row.unchecked:
        row.notes.append(f"not checked: {lines_text(row.unchecked)}, whose adapter was not saved before lawf ended; --retrain makes it again")
    row.seconds = time.monotonic() - started
    if row.first_divergence is not None and not row.error:
        row.status = "changed" if row.changed else "diverged"
    return row


def settings_for(loaded: LoadedSession, settings: Settings, keep: Sequence[str] = ()) -> Settings:
    """The settings that a session is replayed with: the recorded ones, but for what `keep` names."""
    return recorded(loaded, replace(settings, adapter=None), keep)


def _differences(row: Row, loaded: LoadedSession, engine: Engine) -> None:
    parts = changed_parts(loaded, engine)
    row.changed = [f"{name} differs from the one this was recorded with" for name in sorted(parts, key=lambda name: name != "the tokenizer")]
    row.changed += changed_surroundings(loaded, engine)
    if loaded.dropped:
        row.notes.append(loaded.dropped)
    row.notes += [f"line {number} is not as lawf wrote it: it was changed, or what stood before it" for number in loaded.altered[:3]]


class Again(Followed):
    """A session that does again what the file says and compares."""

    def __init__(self, path: Path, engine: Engine, settings: Settings, probes: ProbeSet | Prompts | None, loaded: LoadedSession,
                 row: Row, retrain: bool, stop: Stop) -> None:
        super().__init__(path, engine, settings, probes, loaded.events)
        self.loaded, self.row, self.retrain, self.stop = loaded, row, retrain, stop
        self.line = 1
        row.retrained = retrain and any(event["type"] == "training" for event in loaded.events)

    def run(self) -> None:
        """Every event in its order."""
        for number, event in enumerate(self.loaded.events, start=2):
            self.line = number
            if self.stop():
                raise KeyboardInterrupt
            self.follow(event)
        if self.row.answers == 0:
            raise SessionError(f"session {self.path} has no answer to generate again")
        self.row.notes += [note for note in self.told if note not in self.row.notes]

    # -- answers -----------------------------------------------------------------------------------------------------

    def follow_prompt(self, event: Event) -> None:
        super().follow_prompt(event)
        now = self.engine.prompt_ids(self._asking.messages)
        if now != self._asking.prompt_ids:
            self.row.diverge(Divergence("prompt", self.line, self.prompt, None, self.engine.tokenizer.decode(self._asking.prompt_ids),
                                    self.engine.tokenizer.decode(now), note="the chat template makes another prompt of the same messages"))

    def follow_completion(self, event: Event) -> None:
        then = store.completion_from_json(event)
        parent, correction = self.pending(event["node"])
        forced = then.ids[correction.position:correction.position + len(correction.ids)] if correction else ()
        start = correction.position if correction else 0
        before = parent.completion.ids if parent else ()
        kept = (*before[:start], *correction.ids) if correction else ()
        goes_on = correction is None or (correction.removed_ids == before[start:] and then.ids[:len(kept)] == kept)
        if not goes_on:
            raise SessionError(f"session {self.path}, line {self.line}: the answer does not go on from the one before as corrected")
        where: Where = "first answer" if correction is None else "continuation"
        sampling = store.from_json(Sampling, event["sampling"])
        if not self.put(event.get("adapter", self.stands[0]), bool(event["adapter_on"])):
            self.answered(event, then)
            return
        known = parent.completion.tokens[:start] if parent is not None else ()
        found, same = self.compare(where, then, known, forced, sampling)
        self.row.note(where, same)
        self.answered(event, found)

    def put(self, number: int, on: bool) -> bool:
        """Has an adapter in place as it was then; False where it was not saved."""
        version = self._versions[number] if 0 <= number < len(self._versions) else None
        if version is None or not on:
            if self._adapter is not None and self.adapter_on:
                self._switch(False)
            return True
        if version.weights is None:
            self.row.unchecked.append(self.line)
            return False
        if self._version != number or self._adapter is None:
            self._install(number)
        elif not self.adapter_on:
            self._switch(True)
        return True

    def compare(self, where: Where, then: Completion, known: Sequence[Token], forced: Sequence[int], sampling: Sampling) -> tuple[Completion, bool]:
        """The answer as this model gives it, with the file's ids where the two part, and whether they parted."""
        start, own, ids = len(known), len(known) + len(forced), then.ids
        # An answer that was stopped by hand is compared as far as it came.
        sampling = replace(sampling, max_tokens=max(len(ids), 1)) if then.finish == "interrupted" else sampling
        self.row.answers += 1
        if not ids:
            return then, True
        kept, put, tied, same = list(known), list(forced), False, True
        while True:
            now = generate(self.decoder, then.prompt_ids, kept, put, sampling, self.stop)
            at = first_difference(ids, now.ids, own)
            if at is None:
                break
            tokens = self.decoder.tokens(then.prompt_ids, ids) if at < len(ids) else ()  # with the statistics of now
            difference = tie(then.tokens[at], now.tokens[at], sampling.temperature > 0) if at < min(len(ids), len(now.ids)) else None
            if difference is None:
                self.row.diverge(Divergence(where, self.line, self.prompt, at, then.text, now.text, then.tokens[at] if at < len(ids) else None,
                                        now.tokens[at] if at < len(now.tokens) else None))
                same = False
                break
            self.row.ties.append(Tie(where, self.line, at, then.tokens[at].text, now.tokens[at].text, difference))
            tied = True
            if sampling.temperature > 0:  # the dice were thrown from the start: what follows is compared by its probabilities
                moved = [i for i in range(at, len(ids)) if not alike(then.tokens[i], tokens[i])]
                if moved:
                    self.row.diverge(Divergence(where, self.line, self.prompt, moved[0], then.text, now.text, then.tokens[moved[0]], tokens[moved[0]],
                                            "the tokens were sampled: at this place with other probabilities than then"))
                    same = False
                break
            kept, put, own = list(tokens[:at]), [ids[at]], at + 1
        if tied or not same:
            tokens = (*known[:start], *self.decoder.tokens((*then.prompt_ids, *ids[:start]), ids[start:]))
            now = Completion(then.prompt_ids, tokens, then.finish)
        return replace(now, finish=then.finish), same

    @property
    def prompt(self) -> str:
        messages = (self._asking if self._pending is None else self._question).messages or self._question.messages
        return messages[-1]["content"] if messages else ""

    # -- what was learned --------------------------------------------------------------------------------------------

    def follow_accept(self, event: Event) -> None:
        super().follow_accept(event)
        assert self.node is not None
        then, now = anchors_of(event), self.anchors()
        at = anchor_difference(then, now, self.settings.target_p)
        if whole_numbers(event["completion_ids"]) != self.node.completion.ids:
            raise SessionError(f"session {self.path}, line {self.line}: the accepted answer is another than the one that stood")
        if at is not None:
            token = self.node.completion.tokens[at] if at < len(self.node.completion.tokens) else None
            self.row.diverge(Divergence("anchors", self.line, self.prompt_text, at, anchors_text(then), anchors_text(now), None, token,
                                    "the anchors are others than then"))
        self.row.note("anchors", at is None)

    def follow_training(self, event: Event) -> None:
        if not self.retrain:
            super().follow_training(event)
            self._look_ahead(event["adapter"])
            return
        self.settings = self.recipe(event)
        cases, prompts = self.cases, [whole_numbers(ids) for ids in event["prompts"]]
        self.cases = tuple(case for case in cases if case.prompt_ids in prompts)
        if len(self.cases) != len(prompts):
            raise SessionError(f"session {self.path}, line {self.line}: it was trained on a prompt whose answer was not accepted")
        before, before_on = event["before"]
        if self._versions[before] is None or self._versions[before].weights is not None:
            self._install(before, before_on)
        for _ in self.train(self.stop):
            if self.stop():
                raise KeyboardInterrupt
        self.cases, made = cases, self._versions.pop()
        assert made is not None and isinstance(self.training, TrainingResult)
        if event["node"] is not None:
            self.nodes.pop()
            self.node = self.nodes[event["parent"]]
        self.trained(event, made)
        self._version = event["adapter"]

    def _look_ahead(self, number: int) -> None:
        """Has the adapter of a training at once, also where it was saved later, as one is in a copy that /save wrote elsewhere."""
        for event in self.loaded.events:
            if event["type"] == "adapter" and event.get("adapter") == number and not event.get("loaded") and not self._is_there(number):
                super().follow_adapter(event)

    def _is_there(self, number: int) -> bool:
        version = self._versions[number]
        return version is None or version.weights is not None

    def follow_adapter(self, event: Event) -> None:
        number = event.get("adapter", len(self._versions) - 1)
        if not event.get("loaded") and (self.retrain or self._is_there(number)):
            return  # the one that was trained just now takes its place, or it was found already
        super().follow_adapter(event)
        if not self._is_there(0 if event.get("loaded") else number):
            raise SessionError(f"session {self.path}, line {self.line}: no adapter {event['path']} with the recorded sha256 is there; put it back, "
                               "or replay with --retrain")

    def follow_rerun(self, event: Event) -> None:
        ids = whole_numbers(event["after_ids"])
        case = next((case for case in self.cases if case.prompt == event["prompt"] and case.accepted == event["accepted"]), None) \
            or next((case for case in self.cases if case.prompt == event["prompt"]), None)
        if case is None:
            raise SessionError(f"session {self.path}, line {self.line}: the prompt that was run again was not accepted before")
        number = event.get("adapter", self.stands[0])
        if not self.put(number, True):
            return
        if "after_completion" in event:
            then = store.completion_from_json(event["after_completion"])
            if then.ids != ids:
                raise SessionError(f"session {self.path}, line {self.line}: ids and tokens of the answer after training differ")
        else:  # an older file has no distributions of it
            bare = tuple(Token(id_, "", 0.0, 0, 0.0) for id_ in ids)
            then = Completion(case.prompt_ids, bare, "eos" if ids and ids[-1] in self.engine.end_ids else "length")
        self._question = replace(self._question, messages=self._case_messages[case.prompt_ids], prompt_ids=case.prompt_ids)
        self._asking = self._question
        _, same = self.compare("after training", replace(then, prompt_ids=case.prompt_ids), (), (), Sampling(self.settings.max_tokens))
        self.row.note("after training", same)

    def follow_scorecard(self, event: Event) -> None:
        super().follow_scorecard(event)
        if self._card is not None and self._card.probes is not None:
            self.row.drift_then = self._card.probes.drift_nats
            if not self.stands[1] or not self.put(*self.stands) or self._adapter is None:
                return
            for _ in self.answer_prompts(self.stop):
                pass
            if self.probes.probes:
                self.row.drift_nats = measure_drift(self.engine, self._adapter, self.probes.probes).drift_nats


def lines_text(numbers: Sequence[int]) -> str:
    """Lines of a file in words."""
    return f"line {numbers[0]}" if len(numbers) == 1 else f"lines {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def generate(decoder: Decoder, prompt_ids: Sequence[int], known: Sequence[Token], forced: Sequence[int], sampling: Sampling,
             stop: Stop) -> Completion:
    """An answer to its end. Raises KeyboardInterrupt where it was stopped before."""
    for _ in decoder.generate(prompt_ids, forced, sampling, stop, known):
        pass
    assert decoder.last is not None
    if decoder.last.finish == "interrupted":
        raise KeyboardInterrupt
    return decoder.last
