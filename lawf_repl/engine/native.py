"""What is compiled of decoding, native.c: a token through a decoder, a matrix times a vector, statistics of logits; in float32 on a CPU.

It is compiled when lawf is installed, where there is a C compiler. Where there was none everything here says so, and torch's operations do the
same at half the speed. Threads are those that torch computes with: two pools would wait for each other's cores.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

INTERFACE = 2  # of native.c: another one was compiled from another version of it
MODULE = "lawf_repl.engine._native"
POINTER, COUNT, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Team(ctypes.Structure):
    """`struct team`: how work comes to torch's threads."""

    _fields_ = (("start", POINTER), ("size", POINTER), ("threads", COUNT))


@cache
def library() -> Any:
    """The compiled library; None where there is none, or one of another version."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)
        loaded.lawf_interface.restype = COUNT
        if loaded.lawf_interface() != INTERFACE:
            return None
        loaded.lawf_choose.argtypes, loaded.lawf_choose.restype = (COUNT,), ctypes.c_char_p
        loaded.lawf_product.argtypes, loaded.lawf_product.restype = (*[POINTER] * 5, COUNT, COUNT), None
        loaded.lawf_layers.argtypes, loaded.lawf_layers.restype = (*[POINTER] * 4, COUNT), COUNT
        loaded.lawf_statistics.argtypes, loaded.lawf_statistics.restype = (POINTER, COUNT, COUNT, POINTER, POINTER), COUNT
        loaded.lawf_choose(0)
    except (OSError, AttributeError):  # not a library, or one without these functions
        return None
    return loaded


@cache
def _openmp() -> tuple[int, int] | None:
    """Addresses of what gives work to torch's threads, and says how many took it; None where torch has other threads than GNU's or Intel's OpenMP."""
    try:
        process = ctypes.CDLL(None)
        start, size = (ctypes.cast(getattr(process, name), POINTER).value for name in ("GOMP_parallel", "omp_get_num_threads"))
    except (OSError, AttributeError, TypeError):
        return None
    return (start, size) if start and size else None


def team() -> Any:
    """The first argument of what is compiled: as many threads as torch takes now."""
    return _team(torch.get_num_threads())


@lru_cache
def _team(threads: int) -> Any:
    return ctypes.byref(Team(*(_openmp() or (None, None)), threads))


def at_hand() -> bool:
    """Whether there is something compiled, which can use as many threads as torch does."""
    return library() is not None and (torch.get_num_threads() == 1 or _openmp() is not None)


def what_is_at_hand() -> str:
    """For people: which instructions the compiled code uses, or that there is none."""
    if library() is None:
        return "not compiled: there was no C compiler when lawf was installed, or it was another version"
    return f"compiled ({library().lawf_choose(0).decode()})" if at_hand() else "not compiled for the threads of this torch"


def can_read(weight: torch.Tensor) -> bool:
    """Whether a tensor is one that the compiled code reads: float32, row by row, in memory."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def can_multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `product` makes x W' + bias."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() > 0 and x.numel() == x.shape[-1] == weight.shape[1] and can_read(weight) \
        and (bias is None or (can_read(bias) and bias.shape == weight.shape[:1])) and at_hand()


def product_of_vector(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """W x (O) of x (I), for a weight (O, I) that it `can_read`, and that stays where it is."""
    weight = weight.detach()
    (rows, width), place, call = weight.shape, weight.data_ptr(), library().lawf_product

    def product(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (width,) and can_read(x)
        y = weight.new_empty(rows)  # which keeps the weight, whose address is used, with the function
        call(team(), place, None, x.data_ptr(), y.data_ptr(), rows, width)
        return y
    return product


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W' + bias (..., O) of one vector x (..., I), where it `can_multiply` them."""
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight))
    library().lawf_product(team(), weight.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(), *weight.shape)
    return y


def statistics(row: torch.Tensor, count: int) -> tuple[list[int], list[float], float, float] | None:
    """Of logits (V,), float32 without gaps on a CPU: places and values of the `count` largest, the first of equals first; the logarithm of the sum of
    all powers of e, beside the largest; and the entropy of their softmax, in nats. None where one of them is not a number, or none is finite.
    """
    values, places = (REAL * (count + 2))(), (COUNT * count)()
    if not library().lawf_statistics(row.data_ptr(), len(row), count, values, places):
        return None
    *largest, log_sum, entropy = values
    return list(places), largest, log_sum, entropy


def address(tensor: torch.Tensor | None) -> int | None:
    """Where its numbers stand, as the compiled code takes it."""
    return None if tensor is None else tensor.data_ptr()
