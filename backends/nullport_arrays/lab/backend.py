"""What the command line needs to know of NumPy and CuPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nullport import LayerReport, TeleportConfig
from nullport.lab.backends import Backend
from nullport_arrays import _api
from nullport_arrays._graph import ArrayGraph


def inspect(given: object, config: TeleportConfig) -> list[LayerReport]:
    """List every weight of what a user's function returned.

    Args:
        given: As for :func:`graph`.
        config: Settings of the teleport.

    Raises:
        TypeError: As :func:`graph`.
        ValueError: As ``nullport_arrays.inspect``.
    """
    return _api.inspect(graph(given), config)


def graph(given: object) -> ArrayGraph:
    """Return what a user's function returned.

    Args:
        given: A graph, as the ``from_`` functions return it; with its optimizer, if it has one.

    Raises:
        TypeError: If ``given`` is anything else.
    """
    if not isinstance(given, ArrayGraph):
        msg = f"returned a {type(given).__name__}, expected what from_network, from_callables, "
        msg += "from_layers or from_thinc of nullport_arrays returns"
        raise TypeError(msg)
    return given


def _trainer(place: Callable[..., Any]) -> Callable[..., Any]:
    def trainer(task: Any, settings: Any, seed: int) -> Any:
        from nullport_arrays.lab.training import ArrayTrainer  # only the comparison needs it

        return ArrayTrainer(lambda a: place(a, settings.device), task, settings, seed)

    return trainer


def _on_host(array: Any, device: str) -> Any:
    del device
    return array


def _on_gpu(array: Any, device: str) -> Any:
    import cupy

    with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
        return cupy.asarray(array)


def _cupy_versions() -> dict[str, str]:
    import cupy

    return {"cupy": cupy.__version__, "numpy": np.__version__}


def _cupy_devices() -> list[str]:
    import cupy

    try:
        return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver, or no device
        return []


ONLY = {
    "model": ("mlp", "cnn", "transformer"),
    "init": ("default", "he"),
    "norm": ("pre",),
}
"""What of the settings their networks have."""

NUMPY = Backend(
    "numpy",
    lambda: {"numpy": np.__version__},
    lambda: ["cpu"],
    inspect,
    _trainer(_on_host),
    graph=graph,
    only=ONLY,
)
CUPY = Backend(
    "cupy", _cupy_versions, _cupy_devices, inspect, _trainer(_on_gpu), graph=graph, only=ONLY
)
