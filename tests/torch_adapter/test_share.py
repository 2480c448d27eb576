"""What teleports are charged of a run: little where training goes well, less where declined.

What a charge is by the clock: ``python asv_bench/figures.py --backend torch --only clock``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nullport_torch import Teleporter

STEPS = 300

CASES = {
    "looks ahead": (lambda p: torch.optim.SGD(p, lr=0.05), 0.03),
    "declines": (lambda p: torch.optim.Adam(p, lr=1e-3), 0.01),
}


@pytest.mark.parametrize("name", CASES)
def test_teleports_are_charged_a_small_share(name: str) -> None:
    """Against the horizon, 1000 steps; a toll is part of it in a network of this size."""
    rule: Callable[..., torch.optim.Optimizer]
    rule, most = CASES[name]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        linear = nn.Linear(256, 256)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    optimizer = rule(model.parameters())
    teleporter, draw = Teleporter(model, optimizer), torch.Generator().manual_seed(1)
    plane = torch.randn(256, 10, generator=draw)

    def loss(x: Any) -> Tensor:
        return nn.functional.cross_entropy(model(x), (x @ plane).argmax(1))

    for _ in range(STEPS):
        x = torch.randn(160, 256, generator=draw)
        teleporter.maybe_step(loss, x)
        optimizer.zero_grad()
        teleporter.backward(loss, x)
        optimizer.step()
    spent = teleporter.state_dict()["policy"]["spent"]
    assert teleporter.history
    assert all(report.cost > 5 for report in teleporter.history), "the toll is charged"
    assert spent <= most * 1000
