"""The objective: Learning Anchors without Forgetting.

    loss = sum_t w_t * KL( c_t * onehot(x_t) + (1 - c_t) * p_ref(.|x_<t)  ||  p_theta(.|x_<t) ) / T

Off the anchors c_t is 0 and the adapted model imitates the frozen base; at an anchor it is pulled toward the chosen token.
Equations as in shared design section 1; the KL is the forward one, target first, so with c_t = 1 it is cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lawf_repl.records import Anchor

LEAST_LOGPROB = -1e4  # of a token that the model masks with minus infinity: its probability is 0 all the same, and a product of both is not NaN


@dataclass(frozen=True)
class Target:
    """What a batch's completion tokens are trained toward. N tokens over all rows, M of them anchors."""

    ref_logprobs: torch.Tensor  # (N, V) of the frozen base
    anchors: torch.Tensor       # (M,) indices into N
    chosen: torch.Tensor        # (M,) token ids
    confidence: torch.Tensor    # (M,) c
    weight: torch.Tensor        # (N,) w_t / T of the token's row, summing the rows to a mean over rows

    @property
    def anchor_goal(self) -> torch.Tensor:
        """p of the chosen token under the target distribution (M,): c + (1 - c) * p_ref. Anchor.goal is the same."""
        p_ref = self.ref_logprobs[self.anchors, self.chosen].exp()
        return self.confidence + (1 - self.confidence) * p_ref

    @property
    def hard(self) -> torch.Tensor:
        """Which anchors are to win outright (M,): the others have a goal that they may overshoot."""
        return self.confidence == 1


def make_target(ref_logprobs: torch.Tensor, lengths: Sequence[int], anchors: Sequence[Sequence[Anchor]], anchor_weight: float = 1.0) -> Target:
    """Target of a batch of cases; `anchors` has one sequence for each row, positions counted in that row's completion."""
    return Target(ref_logprobs, *marks(lengths, anchors, ref_logprobs.device, anchor_weight))


def marks(lengths: Sequence[int], anchors: Sequence[Sequence[Anchor]], device: torch.device,
          anchor_weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The last four fields of a Target: where the anchors are, what is chosen there, how surely, and the weight of every token."""
    indices, chosen, confidence, weight = [], [], [], []
    start = 0
    for length, row in zip(lengths, anchors, strict=True):
        weights = [1.0] * length
        for anchor in row:
            indices.append(start + anchor.position)
            chosen.append(anchor.chosen_id)
            confidence.append(anchor.confidence)
            weights[anchor.position] = anchor_weight
        weight += [value / length / len(lengths) for value in weights]
        start += length
    return (torch.tensor(indices, dtype=torch.long, device=device), torch.tensor(chosen, dtype=torch.long, device=device),
            torch.tensor(confidence, device=device), torch.tensor(weight, device=device))


def finite_logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, V) from logits, in float32, none below LEAST_LOGPROB."""
    logprobs = torch.log_softmax(logits.float(), -1)
    return logprobs.clamp_min(LEAST_LOGPROB) if logprobs.requires_grad else logprobs.clamp_min_(LEAST_LOGPROB)


def token_kl(ref_logprobs: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """KL(base || adapted) at each position (N,), from log-probabilities (N, V)."""
    return torch.nn.functional.kl_div(logprobs, ref_logprobs, reduction="none", log_target=True).sum(-1)


def anchor_targets(target: Target) -> torch.Tensor:
    """The target distribution at each anchor (M, V): c on the chosen token, the rest shared as the base shares it."""
    mixture = target.ref_logprobs[target.anchors].exp() * (1 - target.confidence[:, None])
    return mixture.scatter_add(1, target.chosen[:, None], target.confidence[:, None].to(mixture.dtype))


def target_distribution(target: Target) -> torch.Tensor:
    """What the adapted model is trained toward at every position (N, V), as probabilities."""
    return target.ref_logprobs.exp().index_copy(0, target.anchors, anchor_targets(target))


def anchor_kl(logprobs: torch.Tensor, target: Target) -> torch.Tensor:
    """KL(target || adapted) at each anchor (M,), from log-probabilities (N, V)."""
    mixture = anchor_targets(target)
    return (torch.xlogy(mixture, mixture) - mixture * logprobs[target.anchors]).sum(-1)


def lawf_loss(logprobs: torch.Tensor, target: Target) -> torch.Tensor:
    """The objective's value, a scalar in nats, from the adapted model's log-probabilities (N, V)."""
    divergence = token_kl(target.ref_logprobs, logprobs)  # (N,)
    if len(target.anchors):
        divergence = divergence.index_copy(0, target.anchors, anchor_kl(logprobs, target))
    return (divergence * target.weight).sum()
