"""The functions: one teleport, and a look at what one would do."""

from __future__ import annotations

import nullport as core
from nullport import Engine, LayerReport, TeleportConfig, TeleportReport
from nullport.network import Array
from nullport_arrays._graph import ArrayGraph


def teleport(
    graph: ArrayGraph,
    config: TeleportConfig | None = None,
    *,
    engine: Engine | None = None,
    radius: float | Array | None = None,
) -> TeleportReport:
    """Move the weights of a network on arrays so that its loss stays and its gradient grows.

    Args:
        graph: The network, from one of the ``from_`` functions.
        config: Settings; the defaults if None.
        engine: Tangent engine that remembers earlier teleports of the same network.
        radius: Relative length of the move, where ``config`` leaves it open.

    Returns:
        The report. The weights are in ``graph``, or in the objects it was made from.

    Raises:
        ValueError: If the loss is no finite scalar, no weight is used by a linear map, or shapes
            do not fit. After any error everything is bit for bit as before.
    """
    return core.teleport(graph, config, engine=engine, radius=radius)


def inspect(graph: ArrayGraph, config: TeleportConfig | None = None) -> list[LayerReport]:
    """List every weight with what a teleport would find there; nothing is moved.

    Args:
        graph: As for :func:`teleport`.
        config: Settings; the defaults if None.

    Raises:
        ValueError: As :func:`teleport`.
    """
    return core.inspect(graph, config)
