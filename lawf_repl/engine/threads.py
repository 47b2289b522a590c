"""How many threads a model on the CPU is worth, and work that several of them do side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from itertools import count
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SMALL = 30_000_000  # parameters below which a second thread waits longer for the first than it works
MOST = 4            # pieces of work of a small model side by side: between its products they take turns


def choose_threads(model: Any, environment: Mapping[str, str] = os.environ) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Waiting OpenMP threads spin: beside another busy process two of them took a training of the demo model from 10 s to minutes,
    while alone on the machine one thread is no slower.
    """
    if _is_small(model) and "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(1)


def workers(model: Any, environment: Mapping[str, str] = os.environ) -> int:
    """How many pieces of a small model's work may go side by side, each on one thread: as many as there are cores, unless OMP_NUM_THREADS is set.

    Other than OpenMP's they wait for each other only at their end, and asleep: beside another busy process they are no slower than one.
    """
    if not _is_small(model) or "OMP_NUM_THREADS" in environment or torch.get_num_threads() > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def side_by_side(work: Sequence[Callable[[], T]], most: int) -> list[T]:
    """What each piece of work gives, in their order, at most `most` at a time. Where one fails no more are begun, and its error is raised.

    A piece must not touch what another does. Gradients are computed in all where they are here.
    """
    if most <= 1 or len(work) <= 1:
        return [piece() for piece in work]
    turn, found = count(), [None] * len(work)
    learns, over = torch.is_grad_enabled(), False
    others: list[Future[None]] = []

    def take() -> None:
        nonlocal over
        done = False
        try:
            with torch.set_grad_enabled(learns):
                # next() of a count is one operation; whoever has drawn a piece does it
                while not over and (number := next(turn)) < len(work):
                    found[number] = work[number]()  # type: ignore[call-overload]
            done = True
        finally:  # whatever ended it, nothing more is begun
            over = over or not done

    done = False
    try:
        for _ in range(min(most, len(work), MOST) - 1):
            others.append(_pool().submit(take))
        take()
        done = True
    finally:  # nobody goes on behind the caller's back, whatever comes between
        over = over or not done
        try:
            wait(others)
        except KeyboardInterrupt:
            over = True
            wait(others)
            raise
    try:
        for other in others:
            other.result()
    finally:
        others.clear()  # with an error they would be a circle that holds on to all that was computed
    return found  # type: ignore[return-value]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that are there until the process ends, each of which computes alone."""
    return ThreadPoolExecutor(MOST - 1, "lawf-beside", partial(torch.set_num_threads, 1))


def _is_small(model: Any) -> bool:
    return bool(model.device.type == "cpu") and sum(parameter.numel() for parameter in model.parameters()) < SMALL
