"""A base model as GGUF: its numbers, its tensors under llama.cpp's names, its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lawf_repl.errors import ExportError
from lawf_repl.export.gguf_names import Layout, TensorNames, layout_of, library, stored_rows, writing
from lawf_repl.export.gguf_tokens import add_tokenizer

FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}


def write_base(model: Any, tokenizer: Any, out_file: Path) -> None:
    """Write a transformers model without adapter, with its tokenizer and chat template, as GGUF in the model's own dtype.

    Norms and biases are float32, as llama.cpp asks. Raises ExportError, by name, for an architecture, a way of rotating, a
    window, a tokenizer or quantized weights that would not be the same model in llama.cpp.
    """
    gguf = library()
    layout = layout_of(model)
    _check(model, layout)
    tensors = list(_tensors(model, layout))
    with writing(Path(out_file), layout) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[model.dtype]])
        _add_numbers(writer, model)
        add_tokenizer(writer, model, tokenizer)
        for name, tensor in tensors:
            if tensor.dtype == torch.bfloat16:  # numpy has no such type: its bytes
                writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, tensor.numpy())


def _check(model: Any, layout: Layout) -> None:
    config, name = model.config, type(model).__name__
    rope = config.rope_parameters or {}
    window = getattr(config, "sliding_window", None)
    if getattr(config, "model_type", "") in ("qwen2", "qwen3") and not getattr(config, "use_sliding_window", False):
        window = None
    kinds = set(getattr(config, "layer_types", None) or ())
    reasons = {
        "its weights are quantized; load it without --quantize": bool(getattr(config, "quantization_config", None)) or model.dtype not in FILE_TYPES,
        "not all of its weights are in memory; load it without --device-map": any(one.device.type == "meta" for one in model.parameters()),
        "it already carries an adapter; take it out first": any("lora_" in key for key, _ in model.named_parameters()),
        f"llama.cpp lets every token see the whole text, its window is {window} tokens": bool(window) and window < config.max_position_embeddings,
        f"expected the same attention in all layers, found {', '.join(sorted(kinds))}": bool(window) and len(kinds) > 1,
        f"expected the activation silu, found {config.hidden_act}": config.hidden_act != "silu",
        f"rope of type {rope.get('rope_type')} is not written, only default, linear and (Llama) llama3":
            rope.get("rope_type", "default") not in ("default", "linear", *(("llama3",) if layout.permuted else ())),
        "it rotates a part of each head only": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "llama.cpp has no attention biases for it": layout.name == "qwen3" and bool(config.attention_bias),
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise ExportError(f"{name} cannot be written as GGUF: {wrong[0]}")


def _add_numbers(writer: Any, model: Any) -> None:
    gguf, config = library(), model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(int(model.get_input_embeddings().weight.shape[0]))
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))  # the default of llama.cpp is not the default of transformers
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _tensors(model: Any, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's names and the tensors as it stores them, on the CPU."""
    names, config = TensorNames(model, layout), model.config
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings where there is none
        tensor = stored_rows(tensor.detach().cpu(), key, model, layout)
        yield names[key], (tensor.float() if tensor.dim() == 1 else tensor).contiguous()
    if config.rope_parameters.get("rope_type") == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        width = scaled.shape[0] * 2
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        yield "rope_freqs.weight", (plain / scaled.double()).float()  # llama.cpp divides by it
