"""Python's garbage collector, kept out of the way while libraries are loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Inside, nothing is collected.

    Importing torch and transformers makes a million objects that all stay; looking through them again and again takes a seventh of the
    time of the import.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
