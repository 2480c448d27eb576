"""Embeddings tied to an output layer: rows of tokens that no batch contains move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import double_backward, parameter_directions, project
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import teleport

CONFIG = TeleportConfig(projection="threshold", radius=0.3)


SHORT = TeleportConfig(projection="threshold", radius=0.003)


class Tied(nn.Module):
    """A table, a layer, and the table again with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(12, 9), nn.Linear(9, 9)
        self.bias = nn.Parameter(torch.randn(12))
        self.double()

    def hidden(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.table(ids)))

    def loss(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(self.hidden(ids), self.table.weight, self.bias), ids)


def _net() -> tuple[Tied, Callable[[], Tensor], Tensor]:
    torch.manual_seed(0)
    model, ids = Tied(), torch.tensor([3, 7, 3, 1])
    return model, lambda: model.loss(ids), ids


def test_free_rows_move_and_the_others_stay() -> None:
    model, closure, ids = _net()
    before, start = closure().item(), model.table.weight.detach().clone()
    report = teleport(model, closure, config=CONFIG)
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    moved = (model.table.weight != start).any(1)
    assert not moved[ids].any()
    assert int(moved.sum()) == 12 - len(ids.unique())


def test_direction_is_the_projected_double_backward_of_the_free_rows() -> None:
    model, closure, ids = _net()
    got, _ = parameter_directions(model, closure)
    objective = double_backward(model, closure)
    free = torch.tensor([k for k in range(12) if k not in ids.tolist()])
    matrix = torch.cat([objective["table.weight"], objective["bias"][:, None]], 1)[free]
    expected = project(matrix.numpy(), model.hidden(ids).detach().numpy(), bias=True)
    found = torch.cat([got["table.weight"], got["bias"][:, None]], 1)[free].numpy()
    assert abs(found - expected).max() <= 1e-9 * abs(expected).max()


def test_rows_of_the_guard_stay_too() -> None:
    model, closure, _ = _net()
    guard = torch.tensor([0, 5])
    start = model.table.weight.detach().clone()
    report = teleport(model, closure, guard=lambda: model.loss(guard), config=SHORT)
    assert report.accepted
    assert torch.equal(model.table.weight[guard], start[guard])


def test_a_table_whose_rows_are_all_looked_up_stays() -> None:
    model, _, _ = _net()
    report = teleport(model, lambda: model.loss(torch.arange(12)), config=CONFIG)
    reasons = {row.name: row.reason for row in report.layers}
    assert "also used by gather (embedding)" in reasons["table.weight"]


def test_a_table_with_a_penalty_stays() -> None:
    model, closure, _ = _net()
    penalised = lambda: closure() + model.table.weight.square().sum()  # noqa: E731
    report = teleport(model, penalised, config=CONFIG)
    reasons = {row.name: row.reason for row in report.layers}
    assert "square" in reasons["table.weight"]
