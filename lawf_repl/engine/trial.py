"""A trial of a freshly loaded model: does it do what correcting it relies on?

A handful of short forwards on a fixed text show whether the model is causal, whether its cache can be used as its layers'
classes promise, and whether several tokens may be read behind cached ones at once. What fails is replaced by the next
slower way; what nothing can serve is refused here, by name, before anything is generated.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

from lawf_repl.engine.cache import CacheKind, KeptCache, cache_keyword, likely_kind, uncached
from lawf_repl.engine.memory import memory_guard
from lawf_repl.errors import ModelError, first_line

LENGTH = 32        # tokens of the trial text: attention that hashes or chunks shows itself only behind its first chunks
# How far logits may be off, as a share of their spread, for half of the positions. Measured on thirty tiny architectures: in float32
# what is right is off by less than 1e-4, in bfloat16 by less than 0.03; what is wrong by 0.08 and more in both. A median, because in
# half precision a mixture of experts may choose another expert at a single token.
EXACT, COARSE = 1e-3, 0.05
GUARD = "trying the model", "take a smaller one, --dtype bfloat16 or --device cpu"
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)  # what a forward that is not made for this raises
PARTS = 11, 13, 14  # where the text is cut to see whether the model looks ahead: no borders of its blocks, or one at most


def try_model(model: Any, ids: Sequence[int], name: str) -> CacheKind:
    """How the model's cache may be used, found by trying it on `ids`, some ordinary text.

    Raises ModelError where the model's logits hang on tokens to the right, where its forward does not take token ids alone,
    or where its logits are not finite.
    """
    text = (list(ids) * LENGTH)[:LENGTH]
    architecture = type(model).__name__
    try:
        whole = _forward(model, text)
        again = _forward(model, text)
        parts = [_forward(model, text[:length]) for length in PARTS]
    except FAILURES as error:
        raise ModelError(f"{architecture} cannot be served: a forward pass on plain token ids fails ({first_line(error)}); "
                         f"expected a decoder such as Qwen3ForCausalLM") from error
    if not bool(torch.isfinite(whole).any(-1).all()) or bool(whole.isnan().any()):
        raise ModelError(f"{architecture} cannot be served: its logits are not finite; the weights of {name} are damaged, "
                         f"or too large for {whole.dtype}")
    limit = COARSE if getattr(model, "is_quantized", False) or model.dtype in (torch.bfloat16, torch.float16) else EXACT
    if _off(again, whole) > limit:
        raise ModelError(f"{architecture} cannot be served: the same text twice gives different logits; "
                         f"expected a decoder such as Qwen3ForCausalLM")
    ends = sorted(_off(part[-1:], whole[len(part) - 1:len(part)]) for part in parts)
    # The last tokens count on their own: a model that looks ahead by one, or within a block, is wrong nowhere else.
    if ends[1] > limit or _off(parts[-1], whole[:PARTS[-1]]) > limit:
        raise ModelError(f"{architecture} cannot be served: what it predicts at a token changes with the tokens behind it; "
                         f"expected a causal decoder such as Qwen3ForCausalLM")
    likely = likely_kind(model)
    if likely.mode == "none" or not _gives_its_cache(model, text):
        return CacheKind("none")
    can_place = "position_ids" in inspect.signature(model.forward).parameters
    for mode in dict.fromkeys((likely.mode, "recompute")):
        for chunks, positions in ((True, False), (True, True), (False, False), (False, True)):
            kind = CacheKind(mode, chunks, positions)
            if (can_place or not positions) and _holds(model, kind, text, whole, limit):
                return kind
    return CacheKind("none")


@torch.no_grad()
def _gives_its_cache(model: Any, text: list[int]) -> bool:
    """Whether the states come back in a cache of transformers: a model that keeps them in its own layers cannot be taken back."""
    with memory_guard(*GUARD):
        out = model(input_ids=torch.tensor([text], device=model.device), use_cache=True)
    return isinstance(out.get(cache_keyword(model)), Cache)


def _holds(model: Any, kind: CacheKind, text: list[int], whole: torch.Tensor, limit: float) -> bool:
    """Whether prefill, a cut, a chunk and single steps over one cache give the logits of the whole text."""
    cache = KeptCache(model, kind)
    third, half = LENGTH // 3, LENGTH // 2
    try:
        cache.feed(text[:third], 1)
        cache.mark()
        behind = cache.feed(text[third:half], half - third)
        cache.feed([text[0]], 1)
        kept = cache.keep_prefix(text[:third])
        again = cache.feed(text[kept:half + 1], half + 1 - third)
        single = torch.cat([cache.feed([id_], 1) for id_ in text[half + 1:]])
    except FAILURES:
        return False
    return all(_off(found, whole[start:stop]) <= limit for found, start, stop in (
        (behind, third, half), (again, third, half + 1), (single, half + 1, LENGTH)))


@torch.no_grad()
def _forward(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of a plain forward (T, V)."""
    with memory_guard(*GUARD):
        logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device), **uncached(model)).logits[0]
    return logits


def _off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits (T, V) are from the expected ones: the median over positions of the difference's share of the spread."""
    finite = expected.isfinite()  # some models mask tokens that are never to be said
    if not bool((found.isfinite() == finite).all()):
        return float("inf")
    found, expected = (logits.float().masked_fill(~finite, 0.0) for logits in (found, expected))
    found, expected = (logits - logits.mean(-1, keepdim=True) for logits in (found, expected))
    share = (found - expected).pow(2).mean(-1).sqrt() / expected.pow(2).mean(-1).sqrt().clamp_min(1e-9)
    return float(share.median())

