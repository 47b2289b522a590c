"""The key-value cache of one conversation, which can be cut back to a prefix and used again.

Attention layers are cut in place. A plain DynamicCache, made without the model's config, keeps whole histories even for
sliding windows, so that every cut and every second, deeper cut is right; the model masks the window itself. Recurrent
layers keep a state that no cut can undo: for them the prefix is computed again, and `recomputes` says so.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from lawf_repl.engine.memory import memory_guard


def cache_keyword(model: Any) -> str:
    """The name under which a model's forward takes its cache: mamba-like models swallow past_key_values silently."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


def kept_logits(model: Any, keep: int | torch.Tensor) -> dict[str, Any]:
    """The keyword that limits the logits to the last `keep` positions or to given ones (n,), where the forward has it.

    A forward that takes any keyword would swallow it and return all logits, so only a named parameter counts.
    """
    return {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


class KeptCache:
    """Ids whose states are cached, with the model's cache object."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._keyword = cache_keyword(model)
        layers = DynamicCache(config=model.config).layers
        self.recomputes = self._keyword == "cache_params" or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
        self.ids: list[int] = []
        self._cache: Any = None

    def drop(self) -> None:
        """Forget everything: the adapter changed, or a forward pass was cut short."""
        self.ids, self._cache = [], None

    def keep_prefix(self, ids: list[int]) -> int:
        """Cut to the longest cached prefix of `ids` and return its length.

        A recurrent cache is dropped unless all that it holds is a prefix of `ids`.
        """
        shared = next((i for i, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), min(len(self.ids), len(ids)))
        if shared == len(self.ids):
            return shared
        if self.recomputes or shared == 0:
            self.drop()
            return 0
        self._cache.crop(shared - len(self.ids))  # a negative number: how many to remove
        del self.ids[shared:]
        return shared

    @torch.no_grad()
    def feed(self, ids: list[int], keep: int) -> torch.Tensor:
        """Compute `ids` (n) behind the cached ones; returns the logits of the last `keep` positions (keep, V)."""
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config) if self.recomputes else DynamicCache()
        cache, self._cache, known = self._cache, None, self.ids
        self.ids = []  # an interrupted forward leaves layers of unequal length: nothing is known until it returns
        with memory_guard("generating", "take a shorter prompt, a lower --max-tokens or a smaller --dtype"):
            out = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=True, **kept_logits(self._model, keep),
                              **{self._keyword: cache})
        self._cache, self.ids = cache, known + ids
        logits: torch.Tensor = out.logits[0, -keep:]
        return logits
