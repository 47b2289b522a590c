"""Pretraining of the demo model: conversations packed into rows, Muon for the matrices, AdamW for the rest.

Rows hold several conversations with a block-diagonal causal mask, so none sees another; a fixed shape lets one compiled
graph serve every step. The loss is taken at every answer token and at a sample of the others, `targets` positions a step:
the logits of a whole prompt would cost as much as half the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lawf_repl.demo import vocabulary, world


@dataclass(frozen=True)
class Pretraining:
    """How the demo model is made."""

    seed: int = 20261123        # of the world, the initial weights and the order of the text
    vocabulary: int = 3072      # tokens of the byte-level BPE
    steps: int = 2500           # optimiser steps
    rows: int = 48              # rows a step
    length: int = 128           # tokens a row
    muon_lr: float = 0.02       # peak step of the matrices (Muon, orthogonalised momentum)
    adam_lr: float = 3e-3       # peak step of embeddings and norms
    warmup: int = 60            # steps of linear warm-up
    decay: float = 0.5          # last share of the steps, in which the step size falls linearly to zero
    targets: int = 2560         # positions a step whose logits are computed
    prompt_weight: float = 0.5  # weight of the sampled positions outside the answers


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Eight narrow layers: 4.1 million parameters, deep enough that upper and lower layers differ."""
    return Qwen3Config(vocab_size=len(tokenizer), hidden_size=192, intermediate_size=576, num_hidden_layers=8, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=48, tie_word_embeddings=True, max_position_embeddings=1024, use_cache=True,
                       bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids (B, T), document numbers (B, T), loss weights (B, T)


def packed_rows(tokenizer: PreTrainedTokenizerFast, recipe: Pretraining, pieces: list[str], count: torch.Tensor) -> Iterator[Rows]:
    """Batches of packed conversations; adds what it packs to `count` (V,), the occurrences of every token."""
    turn, end = (int(tokenizer.get_vocab()[mark]) for mark in (vocabulary.TURN, vocabulary.END_OF_TURN))
    assistant = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    chunk = 0
    open_rows: list[list[list[int]]] = [[] for _ in range(recipe.rows)]
    room = [recipe.length] * recipe.rows
    while True:
        chunk += 1
        texts = [vocabulary.render(c) for c in world.conversations(recipe.seed + chunk, 4000, pieces)]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if len(ids) > recipe.length:
                continue
            # best fit keeps the rows full; a step starts when a conversation fits nowhere
            fit = min((r for r in range(recipe.rows) if room[r] >= len(ids)), key=room.__getitem__, default=None)
            if fit is None:
                yield _tensors(open_rows, recipe, turn, end, assistant, count)
                open_rows, room, fit = [[] for _ in range(recipe.rows)], [recipe.length] * recipe.rows, 0
            open_rows[fit].append(ids)
            room[fit] -= len(ids)


def _tensors(rows: list[list[list[int]]], recipe: Pretraining, turn: int, end: int, assistant: list[int], count: torch.Tensor) -> Rows:
    ids = torch.zeros(recipe.rows, recipe.length, dtype=torch.long)
    document = torch.full((recipe.rows, recipe.length), -1)
    weight = torch.zeros(recipe.rows, recipe.length)
    for r, conversations in enumerate(rows):
        at = 0
        for number, conversation in enumerate(conversations):
            stop = at + len(conversation)
            ids[r, at:stop] = torch.tensor(conversation)
            document[r, at:stop] = number
            weights, answering = [], False
            for i, id_ in enumerate(conversation):
                weights.append(1.0 if answering else recipe.prompt_weight)
                if id_ == end:
                    answering = False
                if not answering and i >= len(assistant) and conversation[i - len(assistant)] == turn and conversation[i - len(assistant) + 1:i + 1] == assistant:
                    answering = True
            weight[r, at:stop] = torch.tensor(weights)
            weight[r, at] = 0.0  # nothing predicts the first token
            at = stop
    count += torch.bincount(ids[document >= 0], minlength=len(count))
    return ids, document, weight


def pretrain(tokenizer: PreTrainedTokenizerFast, recipe: Pretraining, pieces: list[str],
             on_step: Callable[[int, float, Qwen3ForCausalLM], None], compiled: bool = True,
             resumed: tuple[Qwen3ForCausalLM, int] | None = None) -> tuple[Qwen3ForCausalLM, torch.Tensor]:
    """Train a fresh model; `on_step(step, loss, model)` after each step. Returns the model (fp32) and token counts (V,).

    `resumed` is the model of an interrupted build and the steps it has behind it: the text goes on where it stopped; the
    optimisers' momenta start afresh, with a short warm-up.
    """
    torch.manual_seed(recipe.seed)
    model, first = resumed or (Qwen3ForCausalLM(model_config(tokenizer)), 0)
    model.train()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01),
                  torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]
    peaks = [recipe.muon_lr, recipe.adam_lr]

    def loss_of(ids: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False)[0].flatten(0, 1)  # (B * T, H)
            logits = model.lm_head(hidden[at - 1])  # (N, V)
        nll = functional.cross_entropy(logits.float(), ids.flatten()[at], reduction="none")
        return (nll * weight).sum() / weight.sum()

    step_loss = torch.compile(loss_of) if compiled else loss_of
    causal = torch.ones(recipe.length, recipe.length, dtype=torch.bool).tril()
    count = torch.zeros(len(tokenizer), dtype=torch.long)
    stream = packed_rows(tokenizer, recipe, pieces, count)
    for _ in range(first):
        next(stream)
    for step in range(first, recipe.steps):
        scale = min(1.0, (step - first + 1) / recipe.warmup, (recipe.steps - step) / (recipe.steps * recipe.decay))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        ids, document, weight = next(stream)
        mask = (document[:, None, :, None] == document[:, None, None, :]) & causal  # (B, 1, T, T)
        at = targets(weight.flatten(), recipe.targets)
        loss = step_loss(ids, mask, at, weight.flatten()[at])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        on_step(step, loss.item(), model)
    return model.eval(), count


def targets(weight: torch.Tensor, count: int) -> torch.Tensor:
    """`count` flat positions with a positive weight: those of weight 1 first, then others at random."""
    order = (weight + torch.rand_like(weight) * 1e-3) * (weight > 0)
    return order.topk(count).indices
