"""How a model's weights lie in memory, for a processor that reads all of them for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
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

    One token is a product of each matrix with a vector. Row by row that is a sum across for each of many short rows; column by
    column it is long rows added up, which reads memory up to twice as fast where there are more outputs than inputs (MKL: 11
    against 20 GB/s for a head of 49152 x 576). The longer the rows the better, so projections of the same input lie side by
    side in one tensor, of which each weight is a view. With many tokens at once, as in training, all this makes no difference.
    Until now the weights were parts of their file, mapped into memory. What is not laid out anew is copied too: a single norm
    left there would keep all of the file in memory, beside the copies.
    """
    if model.device.type != "cpu" or not is_plain(model):
        return
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for group in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj), (attention.o_proj,), (mlp.down_proj,)):
            _side_by_side(group)
    _side_by_side((model.lm_head,))
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and parameter.is_contiguous():  # not laid out anew
            parameter.data = parameter.data.clone()


def _side_by_side(modules: Sequence[Any]) -> None:
    if not all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in modules):
        return
    sizes = [module.out_features for module in modules]
    if sum(sizes) <= modules[0].in_features:
        return
    columns = torch.cat([module.weight.t() for module in modules], 1)  # (K, N)
    for module, own in zip(modules, columns.split(sizes, 1), strict=True):
        module.weight.data = own.t()


def joint(modules: Sequence[Any]) -> torch.Tensor | None:
    """The one weight (N, K) that those of `modules` are parts of, one behind the other; None where they are not."""
    weights = [module.weight for module in modules]
    first, stop = weights[0], weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or weight.stride() != first.stride() \
                or weight.stride(0) != 1 or weight.storage_offset() != stop:
            return None
        stop += len(weight)
    out: torch.Tensor = first.detach().as_strided((stop - first.storage_offset(), first.shape[1]), first.stride(), first.storage_offset())
    return out
