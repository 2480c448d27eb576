"""Linear maps that are declared: seen, and held still where the declaration is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import inspect, register_linear, teleport

CONFIG = TeleportConfig(projection="threshold", radius=0.3)


class _Product(torch.autograd.Function):
    """``x W^T + b`` where no torch function mode can see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.T + b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x, g.sum(0)


class Net(nn.Module):
    """Stem, a hidden product, head."""

    def __init__(self, product: Any) -> None:
        super().__init__()
        self.stem, self.product, self.head = nn.Linear(5, 9), product, nn.Linear(7, 3)
        self.w, self.b = nn.Parameter(torch.randn(7, 9) / 3), nn.Parameter(torch.randn(7))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.product(torch.tanh(self.stem(x)), self.w, self.b)
        return self.head(torch.tanh(h))  # type: ignore[no-any-return]


def _net(product: Any) -> tuple[Net, Any]:
    torch.manual_seed(0)
    model, x = Net(product), torch.randn(3, 5).double()
    return model, lambda: model(x).square().mean()


def test_a_declared_function_moves_with_its_bias() -> None:
    model, closure = _net(register_linear(_Product.apply, bias=2))
    before, w, b = closure().item(), model.w.detach().clone(), model.b.detach().clone()
    report = teleport(model, closure, config=CONFIG)
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    assert not torch.equal(model.w, w)
    assert not torch.equal(model.b, b)


def test_it_is_not_seen_without_a_declaration() -> None:
    model, closure = _net(_Product.apply)
    reasons = {row.name: row.reason for row in inspect(model, closure)}
    assert "not visible" in reasons["w"]


def test_a_wrong_declaration_is_found_out() -> None:
    wrong = register_linear(lambda x, w, b: _Product.apply(x, w * w, b))
    model, closure = _net(wrong)
    before, w = closure().item(), model.w.detach().clone()
    teleport(model, closure, config=CONFIG)
    assert torch.equal(model.w, w)
    assert closure().item() == pytest.approx(before, rel=1e-12)


def test_an_equation_must_have_two_operands() -> None:
    with pytest.raises(ValueError, match="two operands and an output"):
        register_linear(_Product.apply, "bi->bi")
