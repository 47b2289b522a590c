"""How a model's weights lie in memory, for a processor that reads all of them for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from lawf_repl.engine import native
from lawf_repl.engine.products import in_columns, onednn_works, take_over

FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
ROWS = 64  # that are turned into columns at a time
ROTATIONS = ("default", "linear", "llama3")  # whose angles do not depend on the length of the text


def is_plain(model: Any) -> bool:
    """Whether the model is of a family of decoders that are all built alike, in all that could make it compute something else."""
    if type(model) not in FAMILY or model.config._attn_implementation != "sdpa":
        return False
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return kinds == {"full_attention"} and rotation in ROTATIONS and not getattr(model, "is_quantized", False)


@torch.no_grad()
def lay_out(model: Any) -> None:
    """Put the weights of a plain decoder as one token at a time reads them, in float32 on a CPU; shapes and numbers stay what they are.

    One token is a product of each matrix with a vector, which native.c makes of rows. Where that is not compiled products.py reads rows as fast as
    they come, and large wide matrices faster column by column where MKL makes the products. MKL alone, where there is no oneDNN, reads 16 GB/s of a
    head of 49152 x 576: there a row is a sum across, for each of many short rows. Column by column it is long rows added up, at 27. Projections of
    the same input lie side by side in one tensor, of which each weight is a view: one product gives them all.
    Until now the weights were parts of their file, mapped into memory. What is not laid out anew is copied too: a single norm
    left there would keep all of the file in memory, beside the copies. Products are oneDNN's from here on, of a model of any kind.
    """
    if model.device.type != "cpu":
        return
    if is_plain(model):
        groups: list[tuple[Any, ...]] = [(model.lm_head,)]
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            groups += (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj), (attention.o_proj,), (mlp.down_proj,)
        laid = {id(module.weight) for group in groups if _lay(group) for module in group}
        for parameter in model.parameters():
            if parameter.dtype == torch.float32 and id(parameter) not in laid:
                parameter.data = parameter.data.clone()
    if onednn_works():
        take_over(model)


def _lay(modules: Sequence[Any]) -> bool:
    """Lay the weights of projections of the same input; whether they lie anew."""
    if not all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in modules):
        return False
    weights = [module.weight for module in modules]
    sizes, width = [len(weight) for weight in weights], weights[0].shape[1]
    rows = onednn_works() or native.at_hand()
    if in_columns(sum(sizes), width) if rows else sum(sizes) > width:
        parts = _columns(weights).split(sizes)
    elif rows and len(modules) > 1:
        parts = torch.cat(weights).split(sizes)
    else:
        return False
    for module, own in zip(modules, parts, strict=True):
        module.weight.data = own
    return True


def _columns(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights (N_i, K) one behind the other (N, K), column by column. A few rows at a time: all at once it takes up to three times as long."""
    columns = weights[0].new_empty(weights[0].shape[1], sum(map(len, weights)))
    start = 0
    for rows in (rows for weight in weights for rows in weight.split(ROWS)):
        columns[:, start:start + len(rows)] = rows.t()
        start += len(rows)
    return columns.t()


def joint(modules: Sequence[Any]) -> torch.Tensor | None:
    """The one weight (N, K) that those of `modules` are parts of, one behind the other; None where they are not."""
    weights = [module.weight for module in modules]
    first, stop = weights[0], weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or weight.stride() != first.stride() \
                or weight.storage_offset() != stop:
            return None
        stop += len(weight) * weight.stride(0)
    rows = (stop - first.storage_offset()) // first.stride(0)
    out: torch.Tensor = first.detach().as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())
    return out
