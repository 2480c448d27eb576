"""The solver of level-set teleportation: its product, its step, its bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nullport_torch.lab.baselines import level_set
from nullport_torch.lab.baselines.level_set import Point, linearised, merit_gain
from nullport_torch.lab.baselines.problem import Problem, inner


def test_the_hessian_product_is_a_difference_of_gradients(problem):
    g, start, h = problem.gradient(), problem.values(), 1e-6
    found = problem.hessian_gradient()
    ends = []
    for sign in (1, -1):
        problem.assign([w + sign * h * d for w, d in zip(start, g, strict=True)])
        ends.append(problem.gradient())
    for q, plus, minus in zip(found, *ends, strict=True):
        expected = (plus - minus) / (2 * h)
        assert float((q - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("violation", [-0.5, 0.0, 0.3])
def test_a_step_solves_the_linearised_problem(violation):
    """Compared with random feasible steps: none has a better objective less its squared length."""
    random = np.random.default_rng(0)
    g, q, rho = random.standard_normal(6), random.standard_normal(6), 0.1
    at = Point(0.0, [], float(g @ g))
    step = linearised(at, float(q @ g), float(q @ q), rho, violation)
    d = step.ascent * q - step.descent * g

    def value(d: np.ndarray) -> float:
        return float(q @ d / (g @ g) - d @ d / (2 * rho))

    assert g @ d + violation <= 1e-12
    best = value(d)
    for _ in range(2000):
        other = d + 0.3 * random.standard_normal(6) * np.linalg.norm(d)
        other -= max(0.0, g @ other + violation) / (g @ g) * g  # made feasible
        assert value(other) <= best + 1e-12
    assert step.promise >= 0


def test_the_gradient_grows_and_the_loss_does_not_rise(problem):
    level, norm = float(problem.loss().detach()), problem.grad_norm()
    level_set.teleport(problem, steps=30)
    assert problem.grad_norm() > 1.5 * norm
    assert float(problem.loss().detach()) <= level + 1e-3 * level


def test_on_an_ellipse_it_finds_the_end_of_the_short_axis():
    """f = (x^2 + 9 y^2) / 2 on f <= f_0: the gradient is largest at (0, sqrt(2 f_0 / 9))."""

    class Quadratic(Problem):
        def loss(self) -> torch.Tensor:
            (w,) = self.parameters
            return 0.5 * (w[0, 0] ** 2 + 9 * w[0, 1] ** 2)

    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    problem = Quadratic(model, torch.zeros(1, 2), torch.zeros(1))
    problem.assign([torch.tensor([[3.0, 0.5]], dtype=torch.float64)])
    level = float(problem.loss().detach())
    level_set.teleport(problem, steps=1000)
    x, y = problem.values()[0][0].tolist()
    assert (abs(x), y) == pytest.approx((0, math.sqrt(2 * level / 9)), abs=0.02)
    assert float(problem.loss().detach()) <= level + 1e-5


def test_numbers_that_are_not_finite_end_it_where_it_was(problem):
    start, loss = problem.values(), problem.loss

    def broken() -> torch.Tensor:  # finite at the start, nowhere else
        moved = any((a != b).any() for a, b in zip(problem.parameters, start, strict=True))
        return loss() * (math.nan if moved else 1.0)

    problem.loss = broken
    level_set.teleport(problem, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, start, strict=True))


def test_the_inner_product_is_over_all_parameters():
    a, b = [torch.ones(2, 3), torch.tensor([2.0])], [torch.full((2, 3), 0.5), torch.tensor([4.0])]
    assert inner(a, b) == 11.0


def test_the_merit_is_the_log_of_the_gradient_norm_less_the_violation():
    here, there = Point(1.2, [], 4.0), Point(1.5, [], 36.0)  # norms 2 and 6, level 1.1
    assert merit_gain(here, there, 1.1, 2.0) == pytest.approx(math.log(3) - 2 * 0.3)
    assert merit_gain(there, Point(0.9, [], 36.0), 1.1, 2.0) == pytest.approx(2 * 0.4)
    assert math.isnan(merit_gain(here, Point(1.0, [], math.inf), 1.1, 2.0))
