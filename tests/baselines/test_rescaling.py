"""Diagonal rescaling: exact for ReLU layers and for queries and keys, undone bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nullport_torch.lab.baselines import rescaling
from nullport_torch.lab.baselines.chains import mlp
from nullport_torch.lab.baselines.problem import Problem
from nullport_torch.lab.baselines.rescaling import layers, queries_keys, rescaled


def logs_of(symmetries, seed: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s.size, generator=random, dtype=torch.float64) for s in symmetries]


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_a_relu_network_keeps_its_function_everywhere(problem, slope):
    problem.model = mlp([20, 24, 24, 5], slope, torch.float64)
    problem.slope = slope
    symmetries, x = layers(problem), torch.randn(50, 20, dtype=torch.float64)
    here = parameters(problem.model)
    moved = rescaled(here, symmetries, logs_of(symmetries))
    before, after = (functional_call(problem.model, p, x) for p in (here, moved))
    assert all(not torch.allclose(moved[name], here[name]) for name in here)
    assert float((after - before).norm() / before.norm()) < 1e-12
    back = rescaled(moved, symmetries, [-log for log in logs_of(symmetries)])
    assert all(torch.allclose(back[name], here[name], rtol=1e-13) for name in here)


def test_the_scale_is_clipped(problem):
    symmetries = layers(problem)
    here = parameters(problem.model)
    moved = rescaled(here, symmetries, [torch.full((s.size,), 9.0) for s in symmetries])
    first = next(iter(here))
    assert torch.allclose(moved[first], here[first] * torch.tensor(2.0).exp())


@pytest.mark.parametrize("packed", [True, False])
def test_queries_and_keys_keep_the_attention(packed):
    torch.manual_seed(0)
    keys = None if packed else 6
    attention = nn.MultiheadAttention(8, 2, kdim=keys, vdim=keys, batch_first=True).double()
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    memory = x if packed else torch.randn(3, 4, 6, dtype=torch.float64)
    symmetry = queries_keys("", attention)
    moved = rescaled(parameters(attention), [symmetry], logs_of([symmetry]))
    assert any(not torch.equal(moved[n], p) for n, p in attention.named_parameters())
    before = attention(x, memory, memory, average_attn_weights=False)
    after = functional_call(attention, moved, (x, memory, memory), {"average_attn_weights": False})
    for a, b in zip(after, before, strict=True):  # outputs, and softmax of the logits
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    logits = [_logits(functional, x, memory) for functional in (parameters(attention), moved)]
    assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-10)


def _logits(p: dict[str, torch.Tensor], x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    packed = p.get("in_proj_weight")
    wq, wk = (
        (packed[:8], packed[8:16])
        if packed is not None
        else (p["q_proj_weight"], p["k_proj_weight"])
    )
    bias = p["in_proj_bias"]
    q, k = x @ wq.T + bias[:8], memory @ wk.T + bias[8:16]
    q, k = q.unflatten(-1, (2, 4)), k.unflatten(-1, (2, 4))
    return torch.einsum("bihd,bjhd->bhij", q, k)


def test_appended_keys_are_refused():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(ValueError, match="add_bias_kv"):
        queries_keys("attention", attention)


@pytest.mark.parametrize("objective", ["virtual_loss", "grad_norm"])
def test_an_accepted_rescaling_keeps_the_loss_and_serves_its_judge(problem, objective):
    lr, before, norm = 0.05, float(problem.loss().detach()), problem.grad_norm()
    expected = _after_sgd(problem, 2 * lr, 5)
    assert rescaling.teleport(problem, steps=10, rate=0.02, lr=lr, objective=objective, restarts=2)
    assert float(problem.loss().detach()) == pytest.approx(before, rel=1e-12)
    assert problem.grad_norm() > 1.01 * norm
    assert _after_sgd(problem, 2 * lr, 5) < expected - 1e-10


def _after_sgd(problem: Problem, lr: float, steps: int) -> float:
    trial = copy.deepcopy(problem)
    optimizer = torch.optim.SGD(trial.model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        trial.loss().backward()
        optimizer.step()
    return float(trial.loss().detach())


def test_the_judge_is_real_sgd(problem):
    expected = _after_sgd(problem, 0.1, 5)
    found = rescaling.judged(problem, parameters(problem.model), 0.05)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_refusal_is_bit_exact(problem):
    start = problem.values()
    # Without a learning rate no rescaling changes the loss by more than rounding.
    assert not rescaling.teleport(problem, steps=3, lr=0.0, objective="grad_norm", restarts=2)
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, start, strict=True))
    assert all(p.grad is None for p in problem.parameters)
