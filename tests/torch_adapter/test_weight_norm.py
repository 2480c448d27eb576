"""Weights given by direction and length: the direction moves, and the length follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.torch_oracle import double_backward, parameter_directions, projected_by_probing
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from nullport import TeleportConfig
from nullport.network import Change
from nullport_torch import teleport
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Optimizers

V = "1.parametrizations.weight.original1"
G = "1.parametrizations.weight.original0"


class Held(nn.Module):
    """A linear map by ``v g / |v|`` with the ratio held, the coordinates of a move."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        parts = layer.parametrizations.weight
        self.v = nn.Parameter(parts.original1.detach().clone())
        g = parts.original0.detach()
        self.ratio = g / torch.norm_except_dim(self.v.detach(), 2, 0)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.v * self.ratio, self.bias)


def _net(dim: int | None = 0) -> tuple[nn.Sequential, Callable[[], Tensor]]:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(9, 7), dim=dim)
    model = nn.Sequential(nn.Linear(5, 9), layer, nn.Tanh(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        dict(model.named_parameters())[G].mul_(1.7)
    x, y = torch.randn(3, 5).double(), torch.randn(3, 3).double()
    return model, lambda: (model(x) - y).square().mean()


def test_direction_is_that_of_held_ratios() -> None:
    model, closure = _net()
    got, _ = parameter_directions(model, closure)
    held, x = Held(model[1]), None
    twin = nn.Sequential(model[0], held, model[2], model[3])
    torch.manual_seed(0)
    _ = _net()
    closure_cells = closure.__closure__ or ()
    x, y = (c.cell_contents for c in closure_cells if isinstance(c.cell_contents, Tensor))
    objective = double_backward(twin, lambda: (twin(x) - y).square().mean())
    h = model[0](x).detach()
    expected = projected_by_probing(
        lambda w: h @ (w["1.v"] * held.ratio).T, {"1.v": held.v.detach()}, objective
    )["1.v"]
    assert float((got[V] - expected).norm()) <= 1e-9 * float(expected.norm())


@pytest.mark.parametrize("dim", [0, 1, None])
def test_loss_stays_and_the_length_follows(dim: int | None) -> None:
    model, closure = _net(dim)
    named = dict(model.named_parameters())
    before, v, w = closure().item(), named[V].detach().clone(), model[1].weight.detach().clone()
    report = teleport(model, closure, config=TeleportConfig(radius=0.3, projection="threshold"))
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    assert not torch.equal(named[V], v)
    axis = -1 if dim is None else dim
    ratio = torch.norm_except_dim(model[1].weight, 2, axis) / named[G].abs()
    assert torch.allclose(ratio, torch.ones_like(ratio))
    moved = model[1].weight.detach() - w
    assert float(moved.norm() / w.norm()) > 0.05


def test_the_older_form_moves_too() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        layer = weight_norm(nn.Conv1d(2, 6, 3))
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), layer, nn.Flatten(), nn.Linear(12, 3)).double()
    stem = nn.Sequential(nn.Linear(5, 8).double(), *model)
    x = torch.randn(1, 5).double()
    before = float(stem(x).square().mean().detach())
    report = teleport(stem, lambda: stem(x).square().mean())
    rows = {row.name: row for row in report.layers}
    assert rows["2.weight_v"].moved > 0
    assert float(stem(x).square().mean().detach()) == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_a_move_has_the_same_ratio(share: float) -> None:
    model, closure = _net()
    named = dict(model.named_parameters())
    start = {name: p.detach().clone() for name, p in named.items()}
    ratio = named[G] / torch.norm_except_dim(named[V], 2, 0)
    graph = TorchGraph(model, closure)
    lin = graph.linearize()
    use = next(u for u in lin.uses if graph.parameters[u.parameter].name == V and u.layout)
    assert use.layout is not None
    graph.move([Change(use.parameter, use.layout, torch.randn(7, 9).double())])
    graph.keep(share)
    now = named[G] / torch.norm_except_dim(named[V], 2, 0)
    assert torch.allclose(now, ratio, rtol=1e-14)
    if not share:
        assert all(torch.equal(p, start[name]) for name, p in named.items())


def test_the_optimizer_sees_gradients_proper() -> None:
    model, closure = _net()
    optimizer = Optimizers(torch.optim.SGD(model.parameters(), lr=0.1), model)
    graph = TorchGraph(model, closure, optimizer=optimizer)
    step = graph.optimizer_step(list(graph.linearize().gradients))  # type: ignore[arg-type]
    proper = torch.autograd.grad(closure(), list(model.parameters()))
    for own, g in zip(step, proper, strict=True):
        assert own is not None
        assert torch.allclose(own, 0.1 * g, atol=1e-15)
