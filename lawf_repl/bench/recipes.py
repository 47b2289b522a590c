"""The peers of the objective's comparison: fine-tuning on the accepted answer, the same with a KL term, and the paper's own recipe.

All three use what is usual for them and what the paper's code uses: rank 8, alpha 16, every linear layer of the decoder, AdamW
with a step size of 5e-4, no replay, a fixed number of steps. They start from the same adapter seed as ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lawf_repl.config import Settings
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.batch import completion_logits, make_batch
from lawf_repl.learn.objective import Target, finite_logprobs, lawf_loss, make_target, token_kl
from lawf_repl.records import Case

ANCHOR_WEIGHT, REST_WEIGHT = 4.0, 2.0  # of the paper
PEER_STEPS = 128
LEARNING_RATE = 5e-4
PEER_SETTINGS = Settings(rank=8, layers="all")


@dataclass(frozen=True)
class Peer:
    """A recipe that is trained for a fixed number of steps; `read_at` are the ones at which it is measured as finished."""

    name: str
    kl_weight: float | None = None  # of KL(base || adapted) on the accepted answer beside cross-entropy; None: the paper's objective
    read_at: tuple[int, ...] = (PEER_STEPS,)


PEERS = (Peer("sft", 0.0), Peer("sft_kl 0.25", 0.25), Peer("sft_kl 1", 1.0), Peer("lawf_paper", None, (32, PEER_STEPS)))


def peer_loss(peer: Peer, logprobs: torch.Tensor, ids: torch.Tensor, target: Target) -> torch.Tensor:
    """The peer's loss, a scalar in nats, from log-probabilities (N, V) of the adapted model along the accepted answer's `ids` (N,)."""
    if peer.kl_weight is None:
        return REST_WEIGHT * lawf_loss(logprobs, target)  # `target` carries the anchors' weight relative to the rest's
    loss = -logprobs.gather(1, ids[:, None]).mean()
    return loss + peer.kl_weight * token_kl(target.ref_logprobs, logprobs).mean() if peer.kl_weight else loss


def train_peer(peer: Peer, adapter: Adapter, case: Case) -> Iterator[tuple[int, bool, torch.Tensor, float]]:
    """Train; yields (steps done, whether greedy generation gives the accepted answer, p of each anchor (M,), seconds) before each step.

    The seconds leave out what the caller does between two of them.
    """
    seconds, began = 0.0, time.perf_counter()
    batch = make_batch([(case.prompt_ids, case.completion_ids)], adapter.base.device)
    with adapter.off(), torch.no_grad():
        reference = finite_logprobs(completion_logits(adapter.base, batch))
    target = make_target(reference, batch.lengths, [case.anchors], ANCHOR_WEIGHT / REST_WEIGHT)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(PEER_STEPS + 1):
        logprobs = finite_logprobs(completion_logits(adapter.base, batch))
        seconds += time.perf_counter() - began
        with torch.no_grad():
            p = logprobs[target.anchors, target.chosen].exp()
            yield step, bool((logprobs.argmax(-1) == batch.targets).all()), p, seconds
        began = time.perf_counter()
        if step == PEER_STEPS:
            return
        optimizer.zero_grad(set_to_none=True)
        peer_loss(peer, logprobs, batch.targets, target).backward()
        optimizer.step()
