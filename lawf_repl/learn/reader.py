"""Logits of completions, read without gradients."""

from __future__ import annotations

from typing import Any

import torch

from lawf_repl.engine.threads import workers
from lawf_repl.learn.batch import Batch, completion_logits
from lawf_repl.learn.stack import Stack


class Reader:
    """Logits of completions as `completion_logits` gives them, by a stack of all layers where the model is one for that."""

    def __init__(self, model: Any) -> None:
        self._model, self._stack = model, Stack(model)

    @torch.no_grad()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits that predict each completion token (N, V)."""
        if not self._stack.works:
            return completion_logits(self._model, batch)
        made: torch.Tensor = self._model.lm_head(self._stack.states(self._stack.pack(batch)))
        return made

    @property
    def most(self) -> int:
        """How many threads may read a batch each at the same time."""
        with torch.no_grad():
            return workers(self._model) if self._stack.works else 1
