"""nullport: faster training by teleporting weights inside the null space of their inputs.

The main path through the core, in reading order:

- :mod:`nullport.network`: what an adapter supplies (:class:`LayerGraph`).
- :mod:`nullport._teleport`: :func:`teleport`, the steps of a teleport.
- :mod:`nullport._direction`: the projected direction, without second derivatives.
- :mod:`nullport._nullspace`: the null space, and the gain that is a projection.

``docs/architecture.md`` follows a teleport through all of them. Authors of adapters find what they
need in :mod:`nullport.network`.
"""

from nullport._config import TeleportConfig
from nullport._report import LayerReport, TeleportReport
from nullport._schedule import Rule, State, Teleporter
from nullport._tangent import Engine
from nullport._teleport import Outcome, inspect, run, teleport
from nullport.network import LayerGraph

__version__ = "0.1.0"

__all__ = [
    "Engine", "LayerGraph", "LayerReport", "Outcome", "Rule", "State", "TeleportConfig",
    "TeleportReport", "Teleporter", "inspect", "run", "teleport",
]  # fmt: skip
