"""Every reason to refuse: weights, buffers, random states and the optimizer stay bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.state import Snapshot
from torch import Tensor, nn

from nullport import TeleportConfig, TeleportReport
from nullport._report import Cause
from nullport_torch import Teleporter, teleport


class Net(nn.Module):
    """Has whatever a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 40), nn.Linear(40, 40), nn.Linear(40, 3)
        self.norm, self.drop = nn.BatchNorm1d(40), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.norm(self.first(x))))
        out: Tensor = self.last(torch.tanh(self.second(h)))
        return out


@dataclass(frozen=True)
class Case:
    """A teleport that must be refused."""

    cause: Cause
    config: TeleportConfig
    lr: float | None = 0.01
    kind: type[torch.optim.Optimizer] = torch.optim.SGD
    guard: Callable[[Net], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    words: str = field(default="")


def _steep(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y) + (outputs * 0).sum().clamp(min=0).sqrt().mul(0)


def _free(**given: Any) -> TeleportConfig:
    return TeleportConfig(**{"projection": "threshold", "max_loss_change": 1e9, **given})


CASES = [
    Case(Cause.SCREEN, _free(objective="grad_norm"), lr=1e4, words="already overshoots"),
    Case(
        Cause.STILL, _free(objective="grad_norm", include=("first*",)), words="no weight can move"
    ),
    Case(Cause.STILL, _free(include=("nothing*",)), words="no weight can move"),
    Case(
        Cause.LOSS,
        _free(projection="none", objective="others", radius=50.0, max_loss_change=0.0),
        words="which is more than allowed",
    ),
    Case(Cause.GRADIENT, _free(objective="grad_norm"), loss=_steep, words="gradient norm .* nan"),
    Case(
        Cause.GAIN,
        _free(objective="grad_norm", max_gain=1 + 1e-9),
        lr=None,
        words="more than max_gain",
    ),
    Case(Cause.ARMIJO, _free(objective="grad_norm", radius=100.0), lr=0.3, words="half of what"),
    Case(Cause.HEALTHY, TeleportConfig(), kind=torch.optim.Adam, words="nothing to gain"),
    Case(
        Cause.GUARD,
        _free(objective="look_ahead", radius=0.5),
        guard=lambda _: torch.ones(()),
        words="guard loss would be 1",
    ),
]


def _case(case: Case) -> tuple[Net, torch.optim.Optimizer, Callable[[], TeleportReport]]:
    torch.manual_seed(0)
    model = Net()
    momentum = {"momentum": 0.9} if case.kind is torch.optim.SGD else {}
    optimizer = case.kind(model.parameters(), case.lr or 0.01, **momentum)
    x, y, other = torch.randn(8, 5), torch.arange(8) % 3, torch.randn(8, 5)
    F.cross_entropy(model(x), y).backward()
    rate, optimizer.param_groups[0]["lr"] = case.lr or 0.01, 1e-6
    optimizer.step()  # a momentum to keep
    optimizer.param_groups[0]["lr"] = rate

    def run() -> TeleportReport:
        guard = case.guard
        return teleport(
            model,
            lambda: case.loss(model(x), y),
            optimizer=None if case.lr is None else optimizer,
            others=lambda: F.cross_entropy(model(other), y),
            guard=None if guard is None else lambda: guard(model) + 0 * model.first.weight.sum(),
            config=case.config,
        )

    return model, optimizer, run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.cause.name.lower())
def test_a_refusal_leaves_no_trace(case: Case) -> None:
    model, optimizer, run = _case(case)
    before = Snapshot(model, optimizer)
    report = run()
    assert not report.accepted
    assert report.cause == case.cause, report.reason
    assert re.search(case.words, report.reason), report.reason
    before.assert_unchanged()


def test_every_cause_is_tested() -> None:
    """An infinite loss raises here: an error leaves no trace either (test_bad_input).

    Replicas that differ are refused in test_distributed_ddp.
    """
    assert {case.cause for case in CASES} == set(Cause) - {Cause.NONE, Cause.INFINITE, Cause.APART}


def _charged(guard: Callable[[], Tensor] | None, steps: int = 1000) -> tuple[float, Teleporter]:
    """Train a perceptron that is not stuck; return the compute charged to teleports."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    for weight in (p for p in model.parameters() if p.ndim == 2):
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    config = TeleportConfig(objective="look_ahead")
    teleporter = Teleporter(model, optimizer, config=config)
    x = torch.randn(64 * 50, 20)
    y = (x[:, :4] + 0.3 * x[:, 4:8].square()).argmax(1)
    for step in range(steps):
        rows = slice(64 * (step % 50), 64 * (step % 50) + 64)
        xb, yb = x[rows], y[rows]

        def closure() -> Tensor:
            return F.cross_entropy(model(xb), yb)  # noqa: B023

        teleporter.maybe_step(closure, guard)
        optimizer.zero_grad()
        teleporter.backward(closure)
        optimizer.step()
    return teleporter.state_dict()["policy"]["spent"], teleporter


def test_refusing_everything_costs_at_most_one_percent() -> None:
    spent, teleporter = _charged(lambda: torch.ones(()))
    assert teleporter.history
    assert not any(report.accepted for report in teleporter.history)
    assert 0 < spent <= 10


def test_the_default_costs_at_most_three_percent() -> None:
    spent, teleporter = _charged(None)
    assert any(report.accepted for report in teleporter.history)
    assert 0 < spent <= 30
