"""The states of one conversation, which can be taken back to a prefix and used again.

Attention layers are cut in place. They keep whole histories even where the model looks through a sliding window, so that
every cut and every second, deeper cut is right; the model masks the window itself. Recurrent layers keep a state that no
cut can undo: snapshots of it are taken, and the latest one before the cut is restored. Where neither is possible the
prefix is computed again. `reuse` says which it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from lawf_repl.engine.layout import is_plain
from lawf_repl.engine.memory import memory_guard
from lawf_repl.engine.plain import FEW, PlainSteps
from lawf_repl.engine.reach import Reach, behind_marks, reach_of
from lawf_repl.engine.roomy import RoomyLayer
from lawf_repl.records import ReuseKind

Mode = Literal["cut", "snapshot", "recompute", "none"]
SPACING = 16               # tokens between two snapshots, at first
SNAPSHOT_BYTES = 2**29     # of all snapshots together; above it every second one goes
GUARD = "generating", "take a shorter prompt, a lower --max-tokens or a smaller --dtype"
KNOWN_LAYERS = (DynamicLayer, RoomyLayer, DynamicIndexedLayer, DummyLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)


@dataclass(frozen=True)
class CacheKind:
    """How a model's cache may be used."""

    mode: Mode               # how it goes back to a prefix; "none": it has no cache, every step reads everything
    chunks: bool = True      # several tokens may be read behind cached ones in one forward
    positions: bool = False  # the model has to be told where the tokens stand: it does not ask its cache


def parameters(model: Any) -> Collection[str]:
    """The names of what the model's forward takes."""
    own = vars(model).get("forward")
    return _parameters(type(model).forward) if own is None else inspect.signature(own).parameters


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    """Remembered: to ask takes as long as a small layer."""
    return frozenset(inspect.signature(forward).parameters)


def cache_keyword(model: Any) -> str | None:
    """The name under which a model's forward takes its cache; None where it takes none.

    Mamba-like models swallow past_key_values silently and see no context, so only a named parameter counts.
    """
    names = parameters(model)
    return next((name for name in ("cache_params", "past_key_values") if name in names), None)


def kept_logits(model: Any, keep: int | torch.Tensor) -> dict[str, Any]:
    """The keyword that limits the logits to the last `keep` positions or to given ones (n,), where the forward has it.

    A forward that takes any keyword would swallow it and return all logits, so only a named parameter counts.
    """
    return {"logits_to_keep": keep} if "logits_to_keep" in parameters(model) else {}


def uncached(model: Any) -> dict[str, Any]:
    """The keyword of a forward without a cache, where the forward has it."""
    return {"use_cache": False} if "use_cache" in parameters(model) else {}


def shared_length(*texts: Sequence[int]) -> int:
    """How many ids all texts begin with in common; 0 where there are none."""
    columns = enumerate(zip(*texts, strict=False))
    return next((i for i, column in columns if column.count(column[0]) < len(column)), min(map(len, texts), default=0))


def likely_kind(model: Any) -> CacheKind:
    """What the model's layers allow, by their classes; a trial has to show that it is so."""
    if cache_keyword(model) is None:
        return CacheKind("none")
    layers = _new_cache(model).layers
    if any(type(layer) not in KNOWN_LAYERS for layer in layers):
        return CacheKind("recompute")
    return CacheKind("snapshot" if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers) else "cut")


def _new_cache(model: Any) -> DynamicCache:
    """An empty cache whose attention layers keep everything, with room: a layer that forgets what left its window cannot be cut."""
    cache = DynamicCache(config=model.config)
    whole: dict[type, Any] = {
        DynamicLayer: lambda layer: RoomyLayer(),
        DynamicSlidingWindowLayer: lambda layer: RoomyLayer(),
        LinearAttentionAndSlidingWindowAttentionLayer: lambda layer: LinearAttentionAndFullAttentionLayer(layer.number_of_states)}
    cache.layers = [whole[type(layer)](layer) if type(layer) in whole else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:  # the config does not say how many layers there are
        cache.layer_class_to_replicate = RoomyLayer
    return cache


class KeptCache:
    """Ids whose states are cached, with the model's cache object."""

    def __init__(self, model: Any, kind: CacheKind | None = None) -> None:
        self._model = model
        self._keyword = cache_keyword(model)
        self._kind = kind or likely_kind(model)
        self.snapshots = self._kind.mode == "snapshot"
        self.ids: list[int] = []
        self.reuse: tuple[ReuseKind, int] = ("new", 0)  # what the last keep_prefix did, and the length that it kept
        self._cache: Any = None
        self._marks: dict[int, _States] = {}  # by length of the prefix
        self._spacing = SPACING
        self._plain = self._kind.mode == "cut" and is_plain(model)
        self._steps: PlainSteps | None = None
        self._finals: dict[int, torch.Tensor] = {}  # final hidden states (1, H) by place, as far as they are known
        self._start = 0  # where the adapter begins to act, if it does not act everywhere
        # What is written under inference_mode can only be written on under it: one way for all that a cache ever holds.
        self._gradless = torch.inference_mode if self._plain else torch.no_grad

    def drop(self) -> None:
        """Forget everything: the adapter changed, or a forward pass was cut short."""
        self.ids, self._cache, self._marks, self._spacing, self._finals = [], None, {}, SPACING, {}

    def drop_behind(self, reach: Reach) -> None:
        """The adapter that acts behind a mark alone was switched, or is another now: what comes before it is the base's still."""
        self._start = reach.start(self.ids)
        if self.ids:
            self.keep_prefix(self.ids[:self._start])

    def recall(self, ids: list[int], count: int) -> torch.Tensor | None:
        """Logits (n, V) of as many of the last `count` of `ids` as are known without reading anything, from the first of them on."""
        steps = self._current_steps() if self._finals else None
        if steps is None:
            return None
        shared = shared_length(self.ids, ids)
        finals: list[torch.Tensor] = []
        for place in range(len(ids) - count, shared):
            if place not in self._finals:
                break
            finals.append(self._finals[place])
        with self._gradless():
            return steps.head(torch.cat(finals)) if finals else None

    def keep_prefix(self, ids: list[int], text: list[int] | None = None) -> int:
        """Go back to the longest prefix of `ids` that can be had without reading it again, and return its length.

        `text` is what is going to be read in all, where that is more: an adapter may act from a place in it on.
        """
        before = len(self.ids)
        shared = shared_length(self.ids, ids)
        reach = reach_of(self._model)
        start = 0 if reach is None else reach.start(ids if text is None else text)
        if start != self._start:  # in another turn of the conversation
            shared = min(shared, start, self._start) if reach is not None else shared
            self._start = start
        self.reuse = ("kept", shared)
        if shared == before and before and self._kind.mode != "none":
            return shared
        # Until it is done nothing is known: an interrupt between two layers leaves them of unequal length.
        ids, cache, marks, finals = self.ids, self._cache, self._marks, self._finals
        spacing = self._spacing
        self.drop()
        marks = {length: states for length, states in marks.items() if length <= shared}
        if self._kind.mode == "cut" and shared:
            cache.crop(shared - before)  # a negative number: how many to remove
            kept, self.reuse = shared, ("cut", shared)
        elif marks:
            kept = max(marks)
            with memory_guard("going back to a snapshot", "take a shorter prompt or a lower --max-tokens"):
                marks[kept].restore(cache, kept)
            self.reuse = ("snapshot", kept)
        else:
            self.reuse = ("recomputed" if shared else "new", 0)
            return 0
        self.ids, self._cache, self._marks, self._spacing = ids[:kept], cache, marks, spacing
        self._finals = {place: final for place, final in finals.items() if place < kept}
        return kept

    def mark(self) -> None:
        """Take a snapshot of the recurrent states as they are now; where caches are cut there is nothing to take."""
        length = len(self.ids)
        if not self.snapshots or not length or length in self._marks:
            return
        try:
            self._marks[length] = _States(self._cache)
        except torch.OutOfMemoryError:  # without snapshots the prefix is computed again, which is slow and right
            self._marks = {}
            return
        while len(self._marks) > 2 and sum(states.bytes for states in self._marks.values()) > SNAPSHOT_BYTES:
            self._spacing *= 2
            lengths = sorted(self._marks)
            # the first one is the prompt's end, where most corrections come back to, and the last one was asked for just now
            for gone in lengths[1:-1:2]:
                del self._marks[gone]

    def feed(self, ids: list[int], keep: int) -> torch.Tensor:
        """Compute `ids` (n) behind the cached ones; returns the logits of the last `keep` positions (keep, V)."""
        with self._gradless():
            return self._feed(ids, keep)

    def _feed(self, ids: list[int], keep: int) -> torch.Tensor:
        if self._kind.mode == "none":
            self.ids = self.ids + ids
            return self._forward(self.ids, keep, 0, **uncached(self._model))
        whole = self._kind.chunks or not self.ids
        logits = self._read(ids, keep) if whole else torch.cat([self._read([id_], 1) for id_ in ids])[-keep:]
        if self.snapshots and len(self.ids) - max(self._marks, default=0) >= self._spacing:
            self.mark()
        return logits

    def _read(self, ids: list[int], keep: int) -> torch.Tensor:
        cache, known = self._cache if self._cache is not None else _new_cache(self._model), self.ids
        self._cache, self.ids = None, []  # an interrupted forward leaves layers of unequal length: nothing is known until it returns
        marks, self._marks = self._marks, {}
        finals, self._finals = self._finals, {}
        masked = reach_of(self._model) is not None and self._start > len(known)
        if self._plain and not masked and known and len(ids) <= FEW and (steps := self._current_steps()) is not None:
            with memory_guard(*GUARD):
                new, logits = steps.logits(ids, cache, keep)
            finals.update(enumerate(new.split(1), len(known)) if len(ids) > 1 else ((len(known), new),))
            known += ids
            self._cache, self.ids, self._finals = cache, known, finals
            return logits
        positions = {"position_ids": torch.arange(len(known), len(known) + len(ids), device=self._model.device)[None]} if self._kind.positions else {}
        logits = self._forward(ids, keep, len(known), use_cache=True, **{str(self._keyword): cache}, **positions)
        self._cache, self.ids, self._marks, self._finals = cache, known + ids, marks, finals
        return logits

    def _current_steps(self) -> PlainSteps | None:
        """The model's own modules, as they are now; None while somebody has hung something on them."""
        if self._steps is None or not self._steps.stands():
            self._steps = PlainSteps(self._model)
            if not self._steps.stands():
                self._steps = None
        return self._steps

    def _forward(self, ids: list[int], keep: int, past: int, **arguments: Any) -> torch.Tensor:
        with memory_guard(*GUARD), behind_marks(self._model, [self._start], past, past + len(ids)):
            out = self._model(input_ids=torch.tensor([ids], device=self._model.device), **kept_logits(self._model, keep), **arguments)
        logits: torch.Tensor = out.logits[0, -keep:]
        return logits


class _States:
    """Copies of what recurrent layers hold; the layers overwrite it in place, so a reference would not do."""

    def __init__(self, cache: Any) -> None:
        self._layers = [([_copy(state) for state in layer.conv_states.values()], [_copy(state) for state in layer.recurrent_states.values()])
                        if isinstance(layer, LinearAttentionCacheLayerMixin) else None for layer in cache.layers]
        self.bytes = sum(state.nbytes for layer in self._layers if layer for states in layer for state in states if state is not None)

    def restore(self, cache: Any, length: int) -> None:
        """Put the states back into the cache that they are from, and cut its attention layers to `length`."""
        for layer, states in zip(cache.layers, self._layers, strict=True):
            if states is not None:
                layer.conv_states = {index: _copy(state) for index, state in enumerate(states[0])}
                layer.recurrent_states = {index: _copy(state) for index, state in enumerate(states[1])}
            if isinstance(layer, DynamicLayer) and layer.is_initialized and layer.get_seq_length() > length:
                # the hybrid layer's own crop refuses, because it would have to undo the recurrent part too
                (DynamicIndexedLayer if isinstance(layer, DynamicIndexedLayer) else DynamicLayer).crop(layer, length - layer.get_seq_length())


def _copy(state: torch.Tensor | None) -> torch.Tensor | None:
    return None if state is None else state.clone()
