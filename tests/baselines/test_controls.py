"""The controls: a random move in the null space, and a learning rate matched to the gradient."""

from __future__ import annotations

import pytest
import torch

from nullport import TeleportConfig
from nullport_torch import teleport
from nullport_torch.lab.baselines.controls import matched_rate, random_move


@pytest.mark.parametrize("steps", [1, 4])
def test_a_random_move_keeps_the_loss_and_has_its_length(problem, steps):
    start, before = problem.values(), float(problem.loss().detach())
    random_move(problem, steps=steps, rate=0.3)
    assert float(problem.loss().detach()) == pytest.approx(before, rel=1e-12)
    moved = [
        float((w - s).detach().norm() / s.norm())
        for w, s in zip(problem.parameters, start, strict=True)
    ]
    assert moved[0] == 0
    if steps == 1:
        assert moved[1:] == pytest.approx([0.3] * 3, rel=1e-12)
    else:  # random steps do not add up
        assert all(0.1 < length < 0.3 for length in moved[1:])


def test_its_direction_is_the_seed_s(problem):
    one, two, other = (problem.copy() for _ in range(3))
    for trial, seed in ((one, 0), (two, 0), (other, 1)):
        random_move(trial, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, two.parameters, strict=True))
    assert not torch.equal(one.parameters[1], other.parameters[1])


def test_nothing_moves_where_there_is_no_null_space(problem):
    problem.x = torch.randn(30, 20, dtype=torch.float64)  # more samples than inputs
    problem.y = torch.arange(30) % 5
    start = problem.values()
    random_move(problem)
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, start, strict=True))


def test_the_matched_rate_grows_as_the_gradient_of_a_teleport(problem):
    start, before = problem.values(), problem.grad_norm()
    found = matched_rate(problem, lr=0.1, rate=0.2, projection="threshold")
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, start, strict=True))
    config = TeleportConfig(radius=0.2, projection="threshold")
    report = teleport(problem.model, problem.loss, config=config)
    assert report.accepted
    assert found == pytest.approx(0.1 * problem.grad_norm() / before, rel=1e-9)
    assert found > 0.11
