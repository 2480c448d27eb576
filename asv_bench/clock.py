"""A look-ahead teleport as ``Teleporter`` makes it, by the clock, beside what it is charged.

One thread; a teleport and a gradient of the same batch in turns, after a warm-up. Times are those
of the process, so that other programs on the machine lengthen both alike or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks.places import optional, torch

nullport, nullport_torch = optional("nullport"), optional("nullport_torch")

REPEATS, SECONDS = (5, 40), 6.0
"""Fewest and most turns for a network, and the time after which no turn starts but the fewest."""

Batch = tuple[Any, Any]


@dataclass(frozen=True)
class Case:
    """A network, and the figures that it has to reach.

    Attributes:
        name: For the table.
        make: Returns the model, and three batches.
        most: Gradients that a teleport may take by the clock.
        charged: Whether what is charged has to be near the clock.
    """

    name: str
    make: Callable[[], tuple[Any, list[Batch]]]
    most: float
    charged: bool = True


def mlp(width: int, samples: int, depth: int = 4) -> tuple[Any, list[Batch]]:
    """Return a ReLU network of square layers, as He et al. (2015) start it."""
    nn, layers = torch.nn, []
    for _ in range(depth):
        layers += [_he(nn.Linear(width, width)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), _batches((samples, width))


def vgg(samples: int) -> tuple[Any, list[Batch]]:
    """Return seven convolutions and three dense layers on 16 x 16 images."""
    nn, layers, channels = torch.nn, [], 3
    for i, out in enumerate((32, 32, 64, 64, 64, 128, 128)):
        layers += [_he(nn.Conv2d(channels, out, 3, padding=1)), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3, 5) else []
        channels = out
    layers += [nn.Flatten(), _he(nn.Linear(512, 128)), nn.ReLU(), _he(nn.Linear(128, 128))]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(128, 10)), _batches((samples, 3, 16, 16))


def transformer(tokens: int, width: int = 128, depth: int = 4) -> tuple[Any, list[Batch]]:
    """Return pre-LN blocks over given vectors, which predict a class for every token."""
    nn = torch.nn
    block = nn.TransformerEncoderLayer(
        width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    body = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
    model = nn.Sequential(body, nn.LayerNorm(width), nn.Linear(width, 64), nn.Flatten(0, 1))
    inputs = [torch.randn(tokens // 64, 64, width) for _ in range(3)]
    return model, [(x, torch.randint(0, 64, (tokens,))) for x in inputs]


def _he(layer: Any) -> Any:
    torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _batches(shape: tuple[int, ...]) -> list[Batch]:
    return [(torch.randn(shape), torch.randint(0, 10, shape[:1])) for _ in range(3)]


CASES = (
    Case("MLP 128 x 4, 64 samples", partial(mlp, 128, 64), 12, charged=False),
    Case("MLP 128 x 4, 256 samples", partial(mlp, 128, 256), 12, charged=False),
    Case("MLP 256 x 4, 128 samples", partial(mlp, 256, 128), 8),
    Case("MLP 256 x 4, 512 samples", partial(mlp, 256, 512), 8),
    Case("MLP 512 x 4, 256 samples", partial(mlp, 512, 256), 6),
    Case("MLP 1024 x 4, 128 samples", partial(mlp, 1024, 128), 6),
    Case("VGG-like CNN, 64 images of 16 x 16", partial(vgg, 64), 8),
    Case("transformer 128 x 4, 1024 tokens", partial(transformer, 1024), 8),
)


def measured(case: Case) -> tuple[float, float, float]:
    """Return the milliseconds of a gradient, and of a teleport in gradients: clock and charge."""
    torch.manual_seed(0)
    model, batches = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    parameters = list(model.parameters())

    def loss(batch: Batch) -> Any:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    batch, guard, others = (partial(loss, one) for one in batches)
    batch().backward()
    optimizer.step()  # from here on there is momentum
    optimizer.zero_grad()
    settings = nullport.TeleportConfig(objective="look_ahead")
    start = [p.detach().clone() for p in parameters]
    charges = []

    def jump() -> None:
        report = nullport_torch.teleport(
            model, batch, optimizer=optimizer, guard=guard, others=others, config=settings
        )
        charges.append(float(report.cost))

    taken: list[list[float]] = [[], []]
    for _ in turns():
        for record, run in zip(
            taken, (lambda: torch.autograd.grad(batch(), parameters), jump), strict=True
        ):
            begin = time.process_time()
            run()
            record.append(time.process_time() - begin)
        with torch.no_grad():  # always from the same place, whatever was accepted
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)
    gradient, teleport = (median(record[2:]) for record in taken)
    return 1e3 * gradient, teleport / gradient, median(charges)


def turns() -> Iterator[int]:
    """Count turns, the first two of which warm up."""
    end = time.perf_counter() + SECONDS
    for turn in range(2 + REPEATS[1]):
        if turn >= 2 + REPEATS[0] and time.perf_counter() > end:
            return
        yield turn
