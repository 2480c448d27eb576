"""What the command line needs to know of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import nullport as core
from nullport import LayerReport, TeleportConfig
from nullport.lab.backends import Backend
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Optimizers
from nullport_torch.lab.baselines import NAMES


def versions() -> dict[str, str]:
    """Return the version of torch."""
    return {"torch": torch.__version__}


def devices() -> list[str]:
    """Return the names of the devices that torch can use now."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def inspect(given: object, config: TeleportConfig) -> list[LayerReport]:
    """List every weight of what a user's function returned.

    Args:
        given: As for :func:`graph`.
        config: Settings of the teleport.

    Raises:
        TypeError: As :func:`graph`.
        ValueError: As ``nullport_torch.inspect``.
    """
    return core.inspect(graph(given), config)


def graph(given: object) -> TorchGraph:
    """Make a graph of what a user's function returned.

    Args:
        given: A model and a closure over it, as ``nullport_torch.inspect`` takes them, and the
            optimizer that trains it, if any.

    Raises:
        TypeError: If ``given`` is anything else.
    """
    expected = "(model, closure): a torch.nn.Module and a function that returns its loss; then an "
    expected += "optimizer, if you like"
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        msg = f"returned {_describe(given)}, expected {expected}"
        raise TypeError(msg)
    model, closure, *rest = given
    fits = isinstance(model, nn.Module) and callable(closure)
    if not fits or not all(isinstance(optimizer, Optimizer) for optimizer in rest):
        msg = f"returned ({', '.join(map(_describe, given))}), expected {expected}"
        raise TypeError(msg)
    return TorchGraph(model, closure, optimizer=Optimizers(rest[0], model) if rest else None)


def trainer(*args: Any) -> Any:
    """Make the trainer of ``nullport compare``; arguments as for ``TorchTrainer``."""
    from nullport_torch.lab.training import TorchTrainer  # only the comparison needs it

    return TorchTrainer(*args)


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple) else kind


BACKEND = Backend("torch", versions, devices, inspect, trainer, NAMES, graph)
