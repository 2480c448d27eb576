"""Weights whose transpose is used too: null for inputs on one side and for outputs on the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.dense import relative
from helpers.torch_oracle import double_backward, parameter_directions
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nullport import TeleportConfig
from nullport_torch import teleport

CONFIG = TeleportConfig(projection="threshold", radius=0.1)


class Tied(nn.Module):
    """A stem, and an autoencoder whose decoder is the transpose of its encoder."""

    def __init__(self, outputs: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 12)
        self.w = nn.Parameter(torch.randn(12, 9) * 0.3)
        self.outputs = outputs
        self.double()

    def loss(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        back = F.linear(torch.tanh(h @ self.w), self.w[: self.outputs])
        return (back.sin() - h[:, : self.outputs]).square().mean()


def _net(outputs: int = 12) -> tuple[Tied, Tensor, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, x = Tied(outputs), torch.randn(3, 5, dtype=torch.float64)
    return model, x, lambda: model.loss(x)


def test_direction_is_double_backward_projected_on_both_sides() -> None:
    model, x, closure = _net()
    objective = double_backward(model, closure)["w"].reshape(-1)
    h = torch.tanh(model.stem(x)).detach()
    z = torch.tanh(h @ model.w).detach()
    parts = torch.autograd.functional.jacobian(lambda w: (h @ w, F.linear(z, w)), model.w.detach())
    jacobian = torch.cat([part.reshape(-1, model.w.numel()) for part in parts])
    _, s, vt = torch.linalg.svd(jacobian, full_matrices=False)
    rows = vt[s > 1e-10 * s.max()]
    expected = (objective - rows.T @ (rows @ objective)).reshape(model.w.shape)
    got = parameter_directions(model, closure)[0]["w"]
    assert relative(got.numpy(), expected.numpy()) <= 1e-9


@pytest.mark.parametrize("projection", ["threshold", "budget"])
def test_the_loss_stays(projection: str) -> None:
    model, _, closure = _net()
    before = closure().item()
    report = teleport(model, closure, config=TeleportConfig(projection=projection, radius=0.1))
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    row = next(row for row in report.layers if row.name == "w")
    assert row.moved == pytest.approx(0.1)
    assert row.output_change <= row.output_change_bound <= 1e-12


def test_the_bound_holds_where_weights_are_rounded() -> None:
    model, x, _ = _net()
    model, x = model.bfloat16(), x.bfloat16()
    h = torch.tanh(model.stem(x)).detach().double()
    start = model.w.detach().double()
    z = torch.tanh((h @ start).bfloat16()).double()
    report = teleport(model, lambda: model.loss(x).float(), config=CONFIG)
    row = next(row for row in report.layers if row.name == "w")
    moved = model.w.detach().double() - start
    change = torch.cat([(h @ moved).ravel(), (z @ moved.T).ravel()]).norm()
    output = torch.cat([(h @ start).ravel(), (z @ start.T).ravel()]).norm()
    assert float(change / output) <= row.output_change_bound


def test_a_slice_of_the_transpose_is_another_matrix() -> None:
    model, _, closure = _net(outputs=7)
    start = model.w.detach().clone()
    report = teleport(model, closure, config=CONFIG)
    assert "different layouts" in {row.name: row.reason for row in report.layers}["w"]
    assert torch.equal(model.w, start)


def test_spectral_norm_moves_in_training_and_keeps_its_iteration() -> None:
    """The iteration multiplies by the weight and by its transpose; both stay as they were."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(9, 8))
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 2)).double()
    x, buffers = torch.randn(3, 5, dtype=torch.float64), dict(model.named_buffers())
    held = {name: b.clone() for name, b in buffers.items()}

    def closure() -> Tensor:
        with torch.no_grad():
            for name, b in buffers.items():
                b.copy_(held[name])
        out: Tensor = model(x).square().mean()
        return out

    before, after = closure().item(), {name: b.clone() for name, b in buffers.items()}
    report = teleport(model, closure, config=CONFIG)
    row = next(row for row in report.layers if row.name.startswith("2."))
    assert row.moved == pytest.approx(0.1)
    assert closure().item() == pytest.approx(before, rel=1e-12)
    for name, b in buffers.items():
        torch.testing.assert_close(b, after[name], rtol=1e-12, atol=1e-13)
