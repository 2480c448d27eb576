"""What teleports may take of a run, by time of the processor: declined ones next to nothing."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from nullport_torch import Teleporter, teleport

STEPS = 1000


def charged_and_timed(rule: type[torch.optim.Optimizer], rate: float) -> tuple[float, float, int]:
    """Return the share of a run that is charged and that teleports took, and how many there were.

    In a network that trains well. The process has made a teleport before: what is loaded and built
    at the first one is no part of any run's share.
    """
    torch.manual_seed(0)
    _warm_up()
    layers: list[nn.Module] = []
    for _ in range(3):
        linear = nn.Linear(256, 256)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    optimizer = rule(model.parameters(), lr=rate)  # type: ignore[call-arg]
    teleporter, draw = Teleporter(model, optimizer), torch.Generator().manual_seed(1)
    plane = torch.randn(256, 10, generator=draw)

    def loss(x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), (x @ plane).argmax(1))

    spent = 0.0
    begin = time.process_time()
    for _ in range(STEPS):
        x = torch.randn(128, 256, generator=draw)
        before = time.process_time()
        if teleporter.maybe_step(loss, x) is not None:
            spent += time.process_time() - before
        optimizer.zero_grad()
        teleporter.backward(loss, x)
        optimizer.step()
    whole = time.process_time() - begin
    state = teleporter.state_dict()["policy"]
    return state["spent"] / STEPS, spent / whole, len(teleporter.history)


def _warm_up() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(5, 20), torch.randint(0, 3, (5,))) for _ in range(3)]
    closures = [partial(lambda x, y: nn.functional.cross_entropy(model(x), y), *b) for b in batches]
    teleport(model, closures[0], optimizer=optimizer, guard=closures[1], others=closures[2])


def test_teleports_take_a_few_percent_where_training_goes_well() -> None:
    charged, taken, count = charged_and_timed(torch.optim.SGD, 0.05)
    assert count >= 1
    assert charged <= 0.03
    assert taken <= 0.04


def test_teleports_that_are_declined_take_next_to_nothing() -> None:
    charged, taken, count = charged_and_timed(torch.optim.Adam, 1e-3)
    assert count >= 1
    assert charged <= 0.01
    assert taken <= 0.01
