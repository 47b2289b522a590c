"""What is recorded of the distribution that a token came from, of its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lawf_repl.engine import native


@dataclass(frozen=True)
class Statistics:
    """Of one distribution over the vocabulary, without a temperature."""

    ids: list[int]          # of the most probable tokens, in their order
    logprobs: list[float]   # natural logarithms of their probabilities
    entropy: float          # nats
    most_probable: int      # of equals, the first one


def statistics_of(row: torch.Tensor, count: int) -> Statistics:
    """Statistics of logits (V,), with the `count` most probable tokens."""
    count = min(count, len(row))
    if row.dtype == torch.float32 and row.device.type == "cpu" and row.is_contiguous() and native.at_hand() \
            and (found := native.statistics(row, count)) is not None:
        ids, logits, log_sum, entropy = found
        return Statistics(ids, [logit - logits[0] - log_sum for logit in logits], entropy, ids[0])
    logprobs = torch.log_softmax(row.float(), -1)  # (V,)
    top = logprobs.topk(count)
    values, ids = top.values.tolist(), top.indices.tolist()
    # A logit of minus infinity has p 0 and adds nothing; its product would be NaN.
    entropy = -float(torch.dot(logprobs.exp(), logprobs.clamp_min(-1e9)))
    return Statistics(ids, values, entropy, ids[0] if len(ids) < 2 or values[0] > values[1] else int(row.argmax()))
