"""Work of small models goes side by side, its results in order, its errors raised, and nobody goes on behind an interrupt."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lawf_repl.config import Settings
from lawf_repl.engine import threads
from lawf_repl.engine.threads import side_by_side, workers
from lawf_repl.learn import pool, standing, train
from lawf_repl.learn.adapter import Adapter
from lawf_repl.learn.reference import compare
from lawf_repl.learn.standing import prepare
from tests.test_train import case


def test_results_come_in_their_order_and_several_threads_take_turns() -> None:
    both = threading.Barrier(2, timeout=30)
    names: set[str] = set()

    def piece(number: int) -> int:
        if number < 2:
            both.wait()  # two have to be at it at once
        names.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1 or threading.current_thread() is threading.main_thread()
        return number * number

    assert side_by_side([partial(piece, number) for number in range(9)], 2) == [number * number for number in range(9)]
    assert len(names) == 2
    names.clear()
    assert side_by_side([partial(piece, number) for number in range(2, 5)], 1) == [4, 9, 16] and names == {threading.current_thread().name}
    assert side_by_side([], 4) == []


@pytest.mark.parametrize("learns", [True, False])
def test_gradients_are_computed_in_all_where_they_are_here(learns: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    both = threading.Barrier(2, timeout=30)

    def piece() -> bool:
        both.wait()
        return (2 * weight).requires_grad

    with torch.set_grad_enabled(learns):
        assert side_by_side([piece, piece], 2) == [learns, learns]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["here", "there"])
def test_where_one_fails_no_more_are_begun(error: type[BaseException], where: str) -> None:
    both = threading.Barrier(2, timeout=30)
    done: list[int] = []

    def piece(number: int) -> None:
        if number < 2:
            both.wait()
            if (threading.current_thread() is threading.main_thread()) == (where == "here"):
                raise error("this one")
            both.wait(0.2)  # broken: nobody else comes
        done.append(number)

    def patient(number: int) -> None:
        try:
            piece(number)
        except threading.BrokenBarrierError:
            done.append(number)

    with pytest.raises(error, match="this one"):
        side_by_side([partial(patient, number) for number in range(99)], 2)
    assert len(done) == 1


def test_whoever_has_drawn_a_piece_does_it_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A count whose numbers reach other threads late."""

        def __init__(self) -> None:
            self._inner = itertools.count()

        def __next__(self) -> int:
            number = next(self._inner)
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.2)
            return number

    monkeypatch.setattr(threads, "count", Slow)
    assert side_by_side([partial(int, number) for number in range(4)], 2) == [0, 1, 2, 3]


def test_an_interrupt_while_others_are_waited_for_waits_for_them_all_the_same() -> None:
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background with interrupts ignored
    try:
        _interrupted_while_waiting()
    finally:
        signal.signal(signal.SIGINT, was)


def _interrupted_while_waiting() -> None:
    begun, killed, ended = threading.Event(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        assert killed.wait(30)
        time.sleep(0.3)
        ended.set()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        killed.set()

    def short() -> None:
        assert begun.wait(30)
        threading.Timer(0.1, interrupt).start()

    def either() -> None:
        (short if threading.current_thread() is threading.main_thread() else long)()

    with pytest.raises(KeyboardInterrupt):
        side_by_side([either, either], 2)
    assert ended.is_set()


def test_as_many_as_there_are_cores_for_small_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(2), raising=False)
    small: Any = SimpleNamespace(device=torch.device("cpu"), parameters=lambda: [torch.zeros(9)])
    large: Any = SimpleNamespace(device=torch.device("cpu"), parameters=lambda: [torch.zeros(threads.SMALL, device="meta")])
    elsewhere: Any = SimpleNamespace(device=torch.device("cuda"), parameters=lambda: [torch.zeros(9)])
    assert workers(small, {}) == 2 and workers(large, {}) == workers(elsewhere, {}) == workers(small, {"OMP_NUM_THREADS": "2"}) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    assert workers(small, {}) == threads.MOST
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers(small, {}) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert workers(small, {}) == 1, "its products take the cores"


def test_a_training_side_by_side_is_the_same_training(demo_engine: Any, demo_probe_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = demo_engine.tokenizer.encode("The capital of France is")
    fixed = case(demo_engine, "What is the capital of France?", "The capital of France is Berlin.", len(ids))
    seen: set[str] = set()

    def evaluated(count: int) -> Any:
        for module in (pool, train):
            monkeypatch.setattr(module, "workers", lambda model: count)
        adapter = Adapter.fresh(demo_engine.model, Settings(), "demo")
        try:
            loop = train.Loop(adapter, prepare(adapter, [fixed], demo_probe_set.replay[:70], demo_probe_set.probes[:70], Settings()), Settings(), 0.0)
            torch.manual_seed(0)
            adapter.restore({name: value if "lora_A" in name else 0.02 * torch.randn_like(value) for name, value in adapter.snapshot().items()})
            for parameter in adapter.parameters():
                parameter.requires_grad_(any(parameter is one for one in loop.trained))
            loop.hold(demo_probe_set.replay[:12])
            loop._evaluate()  # layers below are run on the way

            def noted(*given: Any, **more: Any) -> Any:
                seen.add(threading.current_thread().name)
                return compare(*given, **more)

            with monkeypatch.context() as patch:
                for module in (train, standing):
                    patch.setattr(module, "compare", noted)
                seen.clear()
                total, gradients, reading = loop._evaluate()
            references = [reference.rows(0, len(reference)) for reference in loop.prepared.pool._references]
            return total, gradients, reading.anchor_p, loop.prepared.pool.moved(), loop.prepared.watch.drift(), references, adapter.directions()
        finally:
            adapter.remove()

    alone, both = evaluated(1), evaluated(2)
    assert len(seen) == 2, "a thread each"
    assert abs(alone[0] - both[0]) < 1e-4 * alone[0] and torch.allclose(alone[2], both[2], atol=1e-5) and alone[0] > 0.01
    for one, other in zip(alone[1], both[1], strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))
    assert alone[3] == both[3] and alone[4] == both[4] and sum(alone[3]) > 0  # batch by batch it is the same work
    assert all(map(torch.equal, alone[5], both[5])) and all(torch.equal(alone[6][path], both[6][path]) for path in alone[6])
