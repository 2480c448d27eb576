"""What the command line needs to know of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nullport import LayerReport, TeleportConfig
from nullport.lab.backends import Backend
from nullport_torch import _api
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
        given: A model and a closure over it, as ``nullport_torch.inspect`` takes them.
        config: Settings of the teleport.

    Raises:
        TypeError: If ``given`` is anything else.
        ValueError: As ``nullport_torch.inspect``.
    """
    expected = "(model, closure): a torch.nn.Module and a function that returns its loss"
    if not isinstance(given, tuple) or len(given) != 2:
        msg = f"returned {_describe(given)}, expected {expected}"
        raise TypeError(msg)
    model, closure = given
    if not isinstance(model, nn.Module) or not callable(closure):
        msg = f"returned ({_describe(model)}, {_describe(closure)}), expected {expected}"
        raise TypeError(msg)
    return _api.inspect(model, closure, config=config)


def trainer(*args: Any) -> Any:
    """Make the trainer of ``nullport compare``; arguments as for ``TorchTrainer``."""
    from nullport_torch.lab.training import TorchTrainer  # only the comparison needs it

    return TorchTrainer(*args)


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple) else kind


BACKEND = Backend("torch", versions, devices, inspect, trainer, NAMES)
