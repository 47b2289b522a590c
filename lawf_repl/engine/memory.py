"""Running out of memory, on any device, as one error of lawf's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from lawf_repl.errors import OutOfMemory


@contextmanager
def memory_guard(doing: str, remedy: str) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory: what was being done, and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        raise OutOfMemory(f"out of memory while {doing}; everything up to here is kept: {remedy}") from error


def give_back() -> None:
    """Hand freed memory back to the system, where the C library keeps it: a training leaves holes of hundreds of megabytes in its heap."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU allocator has no error class of its own."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower()))
