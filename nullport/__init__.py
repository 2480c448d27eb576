"""nullport: faster training by teleporting weights inside the null space of their inputs.

The main path through the core, in reading order:

- :mod:`nullport._graph`: what an adapter supplies (:class:`LayerGraph`).
- :mod:`nullport._driver` and :mod:`nullport._ascent`: :func:`teleport`, the steps of a teleport.
- :mod:`nullport._direction`: the projected direction, without second derivatives.
- :mod:`nullport._rowspace` and :mod:`nullport._projection`: the null space.

Authors of adapters find what they need in :mod:`nullport.protocol`.
"""

from nullport._config import TeleportConfig
from nullport._driver import teleport
from nullport._graph import LayerGraph
from nullport._report import TeleportReport

__version__ = "0.1.0"

__all__ = [
    "LayerGraph",
    "TeleportConfig",
    "TeleportReport",
    "teleport",
]
