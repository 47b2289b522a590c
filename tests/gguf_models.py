"""Tiny random models of the kinds that lawf writes as GGUF, over the demo tokenizer, with random LoRAs on their linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# Four heads that share two of k and v, and a head width that is not width / heads: all that a permutation could get wrong shows.
SHAPE: dict[str, Any] = dict(vocab_size=3080, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                             max_position_embeddings=256, initializer_range=0.25, tie_word_embeddings=False, eos_token_id=2, bos_token_id=None,
                             pad_token_id=0)
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
CONFIGS: dict[str, Any] = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "head_dim": 16, **more})),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**{**SHAPE, "head_dim": 16, "sliding_window": None, **more})),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **more})),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "head_dim": 16, **more})),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def tiny(kind: str, **more: Any) -> PreTrainedModel:
    """A model that is always the same, its biases and norms random too."""
    torch.manual_seed(1)
    model: PreTrainedModel = CONFIGS[kind](**more).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (0.0 if name.endswith("bias") else 1.0))
    return model


def write_random_adapter(model: PreTrainedModel, folder: Path, targets: Sequence[str] = LINEAR, **more: Any) -> dict[str, torch.Tensor]:
    """Save a LoRA with random matrices; returns, for each layer that carries one, what peft adds to its weight: (out, in)."""
    torch.manual_seed(2)
    peft: Any = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 12, "task_type": "CAUSAL_LM", "target_modules": list(targets), **more}))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    added = {path.removeprefix("base_model.model."): module.get_delta_weight("default").detach().clone()
             for path, module in peft.named_modules() if hasattr(module, "get_delta_weight")}
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    peft.unload()
    if hasattr(model, "peft_config"):
        del model.peft_config
    return added


@torch.no_grad()
def completion_logits(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Logits that predict each token of a completion: (T, V)."""
    return torch.as_tensor(model(torch.tensor([[*prompt, *completion[:-1]]])).logits[0, len(prompt) - 1:])


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` most likely next tokens; fewer after an end of turn."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != 2):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt):]
