"""Running out of memory, on any device, as one error of lawf's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

from lawf_repl.errors import OutOfMemory
from lawf_repl.fits import fits_text

LEAST_BYTES = 2**28  # of what is kept beside a model, however small that is


@contextmanager
def memory_guard(doing: str, remedy: str, sizes: bool = False) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory: what was being done, what to do and, with `sizes`, which models would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        more = f" ({fits_text(room(error))})" if sizes else ""
        raise OutOfMemory(f"out of memory while {doing}; everything up to here is kept: {remedy}{more}") from error


def room(error: BaseException) -> int:
    """Bytes that a model could have where memory ran out: what is free there, and what this process holds."""
    from lawf_repl.engine.machine import host_memory  # late: it needs what loads models, which needs this

    if torch.cuda.is_available() and (isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)):
        return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved())
    free, total = host_memory()
    return min(total, free + int(psutil.Process().memory_info().rss))


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's weights, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def beside_weights(model: torch.nn.Module, share: float) -> float:
    """Bytes that something kept beside a model may take: this share of its weights, or LEAST_BYTES of a small model."""
    return max(share * weight_bytes(model), LEAST_BYTES)


def give_back() -> None:
    """Hand freed memory back to the system, where the C library keeps it: a training leaves holes of hundreds of megabytes in its heap."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU allocator has no error class of its own."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower()))
