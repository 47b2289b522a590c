"""Models of a known shape with random weights: what a size costs can be measured without anybody's weights.

The shapes are those of SmolLM2-135M, Qwen3-0.6B and Qwen3-8B, vocabulary included. The tokenizer is the demo model's, with
made-up words up to the shape's vocabulary, so that every id can be shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lawf_repl.config import Settings
from lawf_repl.demo.vocabulary import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, TURN
from lawf_repl.engine.base import DEMO_MODEL, Engine, load_engine, pick_device, pick_dtype, quiet
from lawf_repl.engine.layout import lay_out
from lawf_repl.engine.memory import memory_guard
from lawf_repl.engine.threads import choose_threads
from lawf_repl.errors import UsageError

CONTEXT = 32768
_LLAMA: dict[str, Any] = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "vocab_size": 49152}
_QWEN: dict[str, Any] = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {  # config, model, the config's values
    "135m": (LlamaConfig, LlamaForCausalLM, _LLAMA | {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}),
    "0.6b": (Qwen3Config, Qwen3ForCausalLM, _QWEN | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "tie_word_embeddings": True}),
    "8b": (Qwen3Config, Qwen3ForCausalLM, _QWEN | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "tie_word_embeddings": False}),
}


def random_model(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model of one of SHAPES, made on `device` in `dtype`: its weights exist once. Raises UsageError, OutOfMemory.

    Its end-of-turn token has the logit 0 wherever it stands: the greatest of many random ones is above it, so that answers
    run to their limit.
    """
    if shape not in SHAPES:
        raise UsageError(f"--random {shape}: expected one of {', '.join(SHAPES)}")
    make_config, kind, values = SHAPES[shape]
    config = make_config(**values, max_position_embeddings=CONTEXT, eos_token_id=2, pad_token_id=0, bos_token_id=None)
    torch.manual_seed(seed)
    with memory_guard(f"making a random model of shape {shape}", "take a smaller shape or --dtype bfloat16"), torch.device(device):
        model: Any = kind._from_config(config, dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight[2] = 0
    return model.eval()


def random_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """The demo model's tokenizer with words that nobody types behind its own, `size` tokens in all."""
    state = json.loads((DEMO_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    words = state["model"]["vocab"]
    words.update({f"Ġw{id_}": id_ for id_ in range(len(words), size)})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=END_OF_TURN, pad_token=END_OF_TEXT,
                                   chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False, additional_special_tokens=[TURN])


def random_engine(shape: str, settings: Settings) -> Engine:
    """An engine around a random model, on the device and in the dtype that the settings name. Raises as `random_model` does, and ModelError."""
    quiet()
    device = pick_device(settings.device)
    model = random_model(shape, device, pick_dtype(settings.dtype, device), settings.seed)
    choose_threads(model)
    lay_out(model)
    return Engine(model, random_tokenizer(model.config.vocab_size), f"random {shape}", settings.template_args)


@dataclass
class Subject:
    """What a benchmark measures: the model that the settings name, or a random one of a shape, made when it is first asked for."""

    settings: Settings
    shape: str | None = None  # one of SHAPES

    @cached_property
    def engine(self) -> Engine:
        return random_engine(self.shape, self.settings) if self.shape else load_engine(self.settings)

    def peer(self) -> Any:
        """The same weights as transformers loads them, in a model of their own that nothing of lawf has touched."""
        engine, settings = self.engine, self.settings
        if self.shape:
            return random_model(self.shape, engine.device, engine.model.dtype, settings.seed)
        source = settings.model or str(DEMO_MODEL)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=engine.model.dtype, revision=settings.revision,
                                                          trust_remote_code=settings.trust_remote_code)
        return model.to(engine.device).eval()

    @property
    def is_demo(self) -> bool:
        return self.shape is None and self.settings.model is None
