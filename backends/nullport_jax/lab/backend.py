"""What the command line needs to know of JAX."""

from __future__ import annotations

from typing import Any

import jax
import optax

import nullport as core
from nullport import LayerReport, TeleportConfig
from nullport.lab.backends import Backend
from nullport_jax._graph import JaxGraph


def versions() -> dict[str, str]:
    """Return the versions of JAX and optax."""
    return {"jax": jax.__version__, "optax": optax.__version__}


def devices() -> list[str]:
    """Return the names of the devices that JAX can use now, the processor as ``cpu``."""
    found = [f"{d.platform}:{d.id}" for d in jax.devices() if d.platform != "cpu"]
    return ["cpu", *found]


def inspect(given: object, config: TeleportConfig) -> list[LayerReport]:
    """List every weight of what a user's function returned.

    Args:
        given: As for :func:`graph`.
        config: Settings of the teleport.

    Raises:
        TypeError: As :func:`graph`.
        ValueError: As ``nullport_jax.inspect``.
    """
    return core.inspect(graph(given), config)


def graph(given: object) -> JaxGraph:
    """Make a graph of what a user's function returned.

    Args:
        given: ``(loss_fn, params, *batch)``, as ``nullport_jax.inspect`` takes them.

    Raises:
        TypeError: If ``given`` is anything else.
        ValueError: If the loss is no scalar float, or no parameter is used by a linear map.
    """
    if not isinstance(given, tuple) or len(given) < 2 or not callable(given[0]):
        msg = f"returned a {type(given).__name__}, expected (loss_fn, params, *batch): a function "
        msg += "of the parameters and the batch that returns the loss, and its arguments"
        raise TypeError(msg)
    loss_fn, params, *batch = given
    return JaxGraph(loss_fn, params, batch)


def trainer(*args: Any) -> Any:
    """Make the trainer of ``nullport compare``; arguments as for ``JaxTrainer``."""
    from nullport_jax.lab.training import JaxTrainer  # only the comparison needs it

    return JaxTrainer(*args)


ONLY = {"model": ("mlp", "cnn", "transformer"), "init": ("default", "he"), "norm": ("pre",)}
"""What of the settings its networks have."""

BACKEND = Backend("jax", versions, devices, inspect, trainer, graph=graph, only=ONLY)
