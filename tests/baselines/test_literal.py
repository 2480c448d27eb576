"""The literal recipe, and that nullport's exact direction is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.dense import cosine, null_projector, threshold_rank

from nullport import TeleportConfig
from nullport_torch import teleport
from nullport_torch.lab.baselines import literal
from nullport_torch.lab.baselines.problem import Problem


def outputs(problem: Problem) -> torch.Tensor:
    with torch.no_grad():
        return problem.model(problem.x)


def moves(problem: Problem, start: list[torch.Tensor]) -> list[np.ndarray]:
    return [(w - s).detach().numpy() for w, s in zip(problem.parameters, start, strict=True)]


def test_outputs_stay_and_the_gradient_grows(problem):
    before, norm = outputs(problem), problem.grad_norm()
    literal.teleport(problem, steps=5, rate=0.1)
    assert torch.allclose(outputs(problem), before, rtol=0, atol=1e-11)
    assert problem.grad_norm() > 1.3 * norm


def test_a_nullport_step_is_the_literal_step_up_to_its_length(problem):
    start, ours = problem.values(), problem.copy()
    literal.teleport(problem, steps=1, rate=1e-3)
    config = TeleportConfig(
        projection="threshold", objective="grad_norm", tangent="jvp", radius=0.05
    )
    assert teleport(ours.model, ours.loss, config=config).accepted
    theirs, mine = moves(problem, start), moves(ours, start)
    # The first layer cannot move: what the literal recipe leaves there is rounding.
    assert np.linalg.norm(theirs[0]) < 1e-10 * np.linalg.norm(theirs[1])
    assert not mine[0].any()
    for a, b in zip(theirs[1:], mine[1:], strict=True):
        assert cosine(a, b) > 1 - 1e-9


@pytest.mark.parametrize("tau", [0.0, 0.01, 0.2])
def test_the_projector_drops_the_leading_directions_that_hold_the_energy(tau):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=random, dtype=torch.float64)
    x = x * torch.logspace(0, -3, 12, dtype=torch.float64)
    found = literal.projector(x, tau)
    assert round(float(found.trace())) == 12 - threshold_rank(x.numpy(), tau)
    assert torch.allclose(found @ found, found, atol=1e-12)
    assert float((x @ found).square().sum()) <= tau * float(x.square().sum()) + 1e-20


def test_without_a_threshold_it_is_the_projector_of_a_dense_oracle():
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert np.allclose(literal.projector(x).numpy(), null_projector(x.numpy()), atol=1e-13)
