"""Teleports for networks on NumPy, CuPy and any other array namespace; see :mod:`nullport`.

Four ways in, all of which end in a graph that :func:`teleport` moves:

- :func:`from_network`: a network of :mod:`nullport_arrays.layers`.
- :func:`from_callables`: any network written by hand, given as functions of its weights.
- :func:`from_layers`: a list of objects with ``forward`` and ``backward``.
- :func:`from_thinc`: a thinc model.
"""

from nullport_arrays._api import inspect, teleport
from nullport_arrays._callables import from_callables
from nullport_arrays._network import from_network
from nullport_arrays._objects import from_layers
from nullport_arrays._optimizers import SGD, Adagrad, Adam, apply
from nullport_arrays._teleporter import Teleporter
from nullport_arrays._thinc import from_thinc

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Teleporter",
    "apply",
    "from_callables",
    "from_layers",
    "from_network",
    "from_thinc",
    "inspect",
    "teleport",
]
