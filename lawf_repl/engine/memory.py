"""Running out of memory, on any device, as one error of lawf's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lawf_repl.errors import OutOfMemory


@contextmanager
def memory_guard(doing: str, remedy: str) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory: what was being done, and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory while {doing}; everything up to here is kept: {remedy}") from error
    except RuntimeError as error:
        # the CPU allocator has no error class of its own
        if "can't allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise OutOfMemory(f"out of memory while {doing}; everything up to here is kept: {remedy}") from error
        raise
