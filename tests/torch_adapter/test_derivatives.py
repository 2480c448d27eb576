"""Losses that hold derivatives by inputs: null for inputs and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.torch_oracle import double_backward, parameter_directions, project
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import Teleporter, inspect, teleport

CONFIG = TeleportConfig(projection="threshold", radius=0.3)


def _net(width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double()


def _poisson(model: nn.Module, n: int = 4) -> Callable[[], Tensor]:
    """Return the residual of u'' = -sin(x), with u(0) = 0."""
    z = torch.linspace(0.1, 3.0, n).double()[:, None]

    def loss() -> Tensor:
        with torch.enable_grad():
            x = z.clone().requires_grad_()
            (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return (ddu + torch.sin(x)).square().mean() + model(0 * z[:1]).square().mean()

    return loss


def test_loss_stays_and_inner_layers_move() -> None:
    model = _net()
    closure = _poisson(model)
    before = closure().item()
    report = teleport(model, closure, config=CONFIG)
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    assert float(report.grad_norm_after) > float(report.grad_norm_before)
    moved = {row.name: row.moved for row in report.layers}
    assert moved["2.weight"] > 0
    assert moved["4.weight"] > 0


def test_direction_is_the_projected_double_backward() -> None:
    model = _net()
    closure = _poisson(model)
    got, _ = parameter_directions(model, closure, tangent="fd")
    objective = double_backward(model, closure)
    z = torch.linspace(0.1, 3.0, 4).double()[:, None]

    def hidden(x: Tensor) -> Tensor:
        return model[:2](x[None])[0]  # type: ignore[no-any-return]

    first = torch.func.jacfwd(hidden)
    second = torch.func.jacfwd(first)
    rows = torch.cat([
        torch.stack([hidden(x) for x in (*z, 0 * z[0])]),
        torch.stack([first(x)[:, 0] for x in z]),
        torch.stack([second(x)[:, 0, 0] for x in z]),
    ])  # fmt: skip
    expected = project(objective["2.weight"].numpy(), rows.detach().numpy(), bias=False)
    error = abs(got["2.weight"].numpy() - expected).max() / abs(expected).max()
    assert error <= 1e-5  # gradients are differenced


def test_a_network_for_poisson_trains_and_is_teleported() -> None:
    model = _net(32)
    closure = _poisson(model, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    teleporter = Teleporter(model, optimizer, config=TeleportConfig(projection="threshold"))
    first = closure().item()
    for _ in range(30):
        teleporter.maybe_step(closure)
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    assert closure().item() < 0.5 * first


def test_samples_that_mix_are_differentiated_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 1)).double()
    z = torch.randn(3, 2).double()

    def closure() -> Tensor:
        x = z.clone().requires_grad_()
        with torch.enable_grad():
            h = model[:2](x)
            y = model[2](h + h.mean(0))
            (dy,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return dy.square().mean() + y.mean()

    before = closure().item()
    report = teleport(model, closure, config=CONFIG)
    moved = {row.name: row.moved for row in report.layers}
    assert report.accepted
    assert moved["2.weight"] > 0
    assert closure().item() == pytest.approx(before, rel=1e-12)


def test_gradients_by_weights_hold_those_weights() -> None:
    """MAML-like: a step inside the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    x, y = torch.randn(3, 5).double(), torch.randn(3, 2).double()

    def closure() -> Tensor:
        w = model[2].weight
        with torch.enable_grad():
            inner = (model(x) - y).square().mean()
            (g,) = torch.autograd.grad(inner, w, create_graph=True)
        h = model[1](model[0](x))
        return (nn.functional.linear(h, w - 0.1 * g, model[2].bias) - y).square().mean()

    before = closure().item()
    reasons = {row.name: row.reason for row in inspect(model, closure)}
    assert reasons["2.weight"]
    teleport(model, closure, config=CONFIG)
    assert closure().item() == pytest.approx(before, rel=1e-12)


def test_too_many_derivatives_hold_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullport_torch._derivatives.LARGEST", 2)
    model = _net()
    reasons = {row.name: row.reason for row in inspect(model, _poisson(model))}
    assert "too many derivatives" in reasons["2.weight"]
