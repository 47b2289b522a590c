"""How many threads a model on the CPU is worth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

SMALL = 30_000_000  # parameters below which a second thread waits longer for the first than it works


def choose_threads(model: Any, environment: Mapping[str, str] = os.environ) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Waiting OpenMP threads spin: beside another busy process two of them took a training of the demo model from 10 s to minutes,
    while alone on the machine one thread is no slower.
    """
    size = sum(parameter.numel() for parameter in model.parameters())
    if model.device.type == "cpu" and size < SMALL and "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(1)
