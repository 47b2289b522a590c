"""The solver finds minima, remembers what it evaluated, and survives what is no number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from lawf_repl.learn.solve import Solver


def of(function: Callable[[torch.Tensor], torch.Tensor], at: torch.nn.Parameter) -> Callable[[], tuple[float, Sequence[torch.Tensor], list[float]]]:
    def evaluate() -> tuple[float, Sequence[torch.Tensor], list[float]]:
        loss = function(at)
        return float(loss.detach()), torch.autograd.grad(loss, [at]), at.detach().tolist()
    return evaluate


def test_it_finds_the_minimum_of_a_curved_valley() -> None:
    at = torch.nn.Parameter(torch.tensor([-1.2, 1.0]))
    solver = Solver([at], of(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, at))  # Rosenbrock
    losses = [solver.here()[0]] + [solver.step()[0] for _ in range(60)]
    assert losses[-1] < 1e-2 < losses[0] and solver.evaluations < 61 * 4
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))


def test_what_a_step_reports_belongs_to_where_the_parameters_stand_and_is_not_computed_again() -> None:
    at = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    solver = Solver([at], of(lambda x: (x ** 4).sum(), at))
    for _ in range(5):
        loss, where = solver.step()
        assert where == at.detach().tolist() and loss == float((at.detach() ** 4).sum())
        known = solver.evaluations
        assert solver.here() == (loss, where) and solver.evaluations == known


def test_a_loss_that_is_no_number_is_stepped_back_from() -> None:
    at = torch.nn.Parameter(torch.tensor([0.5]))
    solver = Solver([at], of(lambda x: (x - torch.log(x)).sum(), at))  # not a number below zero
    for _ in range(20):
        loss, _ = solver.step()
        assert loss == loss
    assert abs(float(at.detach()) - 1) < 0.1
