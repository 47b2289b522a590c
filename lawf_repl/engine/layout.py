"""How a model's weights lie in memory, for a processor that reads all of them for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lawf_repl.engine.plain import is_plain


@torch.no_grad()
def lay_out(model: Any) -> None:
    """Put the weights that have more outputs than inputs column by column, in float32 on a CPU; shapes and numbers stay what they are.

    One token is a product of each matrix with a vector. Row by row that is a sum across for each of many short rows; column by
    column it is long rows added up, which reads memory up to twice as fast (MKL: 11 against 20 GB/s for a head of 49152 x 576).
    With many tokens at once, as in training, the two are alike. Takes the memory of the largest weight for a moment.
    """
    if model.device.type != "cpu" or not is_plain(model):
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
