"""Both actions of symmetry teleportation, and the ascent by products against autograd."""

from __future__ import annotations

import pytest
import torch

from nullport_torch.lab.baselines import symmetry, symmetry_ascent
from nullport_torch.lab.baselines.chains import mlp
from nullport_torch.lab.baselines.problem import Problem
from nullport_torch.lab.baselines.symmetry import act_2022, act_2024
from nullport_torch.lab.baselines.symmetry_published import (
    differentiated,
    forward,
    symmetry_teleport,
)


def elements(problem: Problem, size: float) -> list[torch.Tensor]:
    """Return random T, one per pair, of spectral norm about ``size``."""
    random = torch.Generator().manual_seed(2)
    found = []
    for w in problem.parameters[:-1]:
        t = torch.randn(w.shape[0], w.shape[0], generator=random, dtype=w.dtype)
        found.append(size * t / torch.linalg.matrix_norm(t, 2))
    return found


def output_error(problem: Problem, weights: list[torch.Tensor]) -> float:
    before = forward(problem.values(), problem.x)
    return float((forward(weights, problem.x) - before).norm() / before.norm())


@pytest.mark.parametrize("action", ["2022", "2024"])
def test_an_exact_action_keeps_the_outputs_of_the_batch_and_moves(problem, action):
    weights, ts = problem.values(), elements(problem, 0.3)
    acted = (
        act_2022(weights, ts, problem.x, exact=True)
        if action == "2022"
        else act_2024(weights, ts, problem.x)
    )
    assert output_error(problem, acted.weights) < 1e-10
    assert float((acted.weights[0] - weights[0]).norm()) > 0.05 * float(weights[0].norm())


def test_the_inverse_to_first_order_costs_the_square_of_the_element(problem):
    errors = [
        output_error(
            problem, act_2022(problem.values(), elements(problem, size), problem.x).weights
        )
        for size in (2e-3, 1e-3)
    ]
    assert errors[1] > 1e-9
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_more_samples_than_the_action_can_be_exact_for_change_the_outputs(problem):
    problem.x = torch.randn(30, 20, dtype=torch.float64)  # 20 inputs, width 24
    ts = elements(problem, 0.1)
    assert (
        output_error(problem, act_2022(problem.values(), ts, problem.x, exact=True).weights) > 0.01
    )
    assert output_error(problem, act_2024(problem.values(), ts, problem.x).weights) > 0.01
    with pytest.raises(ValueError, match="invalid number of samples: 30; allowed: at most 20"):
        symmetry.teleport(problem)


def test_at_the_identity_the_2022_action_drops_what_the_batch_does_not_see(problem):
    weights = problem.values()
    zeros = elements(problem, 0.0)
    moved = act_2022(weights, zeros, problem.x, exact=True).weights
    seen = torch.linalg.pinv(problem.x) @ problem.x
    assert torch.allclose(moved[0], weights[0] @ seen, atol=1e-12)
    again = act_2022(moved, zeros, problem.x, exact=True).weights
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(again, moved, strict=True))


@pytest.mark.parametrize("action", ["2022", "2024"])
def test_the_ascent_by_products_is_the_differentiated_action(problem, action):
    act = {"2022": act_2022, "2024": act_2024}[action]
    fast = {"2022": symmetry_ascent.ascent_2022, "2024": symmetry_ascent.ascent_2024}[action]
    expected = differentiated(act, problem.values(), problem.x, problem.y)
    at = act(problem.values(), elements(problem, 0.0), problem.x)
    problem.assign(at.weights)
    found = fast(at, problem.hessian_gradient(), problem.slope)
    for a, b in zip(found, expected, strict=True):
        assert float(b.norm()) > 1e-6
        assert float((a - b).norm() / b.norm()) < 1e-8


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_the_pull_back_of_an_inverse_is_that_of_autograd(shape):
    random = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape[::-1], generator=random, dtype=torch.float64)
    inverse = torch.linalg.pinv(a)
    (expected,) = torch.autograd.grad((inverse * g).sum(), a)
    found = symmetry_ascent.inverse_pull_back(a.detach(), inverse.detach(), g)
    assert torch.allclose(found, expected, atol=1e-11)


def test_the_right_inverse_of_a_deficient_matrix_is_the_pseudo_inverse():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(symmetry_ascent.right_inverse(x), torch.linalg.pinv(x), atol=1e-12)
    x[3] = x[1] + x[2]
    assert torch.allclose(symmetry_ascent.right_inverse(x), torch.linalg.pinv(x), atol=1e-12)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        symmetry_ascent.right_inverse(x * torch.nan)


def test_a_teleport_of_2022_is_the_published_one(problem):
    # From where T = 0 leads: what the batch does not see of the weights enters by the square of T.
    problem.assign(act_2022(problem.values(), elements(problem, 0.0), problem.x).weights)
    start, x, y = problem.values(), problem.x, problem.y
    published = symmetry_teleport(start, x, y, steps=3, rate=5e-3)
    symmetry.teleport(problem, steps=3, rate=1e-2, exact=False)  # that one ascends twice as much
    for ours, theirs, old in zip(problem.parameters, published, start, strict=True):
        assert float((theirs - old).norm()) > 1e-3 * float(old.norm())
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("action", "rate"), [("2022", 0.03), ("2024", 0.3)])
def test_the_loss_stays_and_the_gradient_grows(problem, action, rate):
    start = problem.copy()
    symmetry.teleport(start, steps=1, rate=0.0, action=action)  # what T = 0 does
    symmetry.teleport(problem, steps=5, rate=rate, action=action)
    assert abs(problem.loss().item() / start.loss().item() - 1) < 1e-9
    assert problem.grad_norm() > 1.3 * start.grad_norm()


def test_a_bias_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LeakyReLU(0.1))
    with pytest.raises(ValueError, match="without bias"):
        symmetry.teleport(Problem(model, torch.ones(1, 3), torch.tensor([0])))
    other = mlp([3, 3, 3], slope=0.2)
    with pytest.raises(ValueError, match=r"LeakyReLU\(0.1\)"):
        symmetry.teleport(Problem(other, torch.ones(1, 3), torch.tensor([0])))
