"""Array libraries and devices behind one small record: where arrays are made, and waited for.

Frameworks are imported here, at the top: every case runs in a process forked from one that has
imported the benchmarks, and would pay for it otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

# The threads of LAPACK's own pool wait in loops, and take the processors from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

Array = Any


def optional(name: str) -> Any:
    """Return a module, or None where it, or what it needs, is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


torch, jax = optional("torch"), optional("jax")
cupy = optional("cupy")


@dataclass(frozen=True)
class Place:
    """An array library on a device.

    Attributes:
        put: Copies a NumPy array there.
        wait: Returns when the arrays of any result have been computed.
        compiled: Compiles a function of arrays, or returns it as it is.
    """

    put: Callable[[np.ndarray], Array]
    wait: Callable[[Any], None]
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]]


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@cache
def usable(backend: str) -> bool:
    """Whether a backend and its device are here."""
    name, _, device = backend.partition(":")
    if optional(name) is None:
        return False
    with contextlib.suppress(Exception):  # every library has its own way to say there is no device
        if name == "torch":
            return device == "cpu" or torch.cuda.is_available()
        if name == "jax":
            return bool(jax.devices(device))
        return name == "numpy" or cupy.cuda.runtime.getDeviceCount() > 0
    return False


def place(backend: str) -> Place:
    """Return the record of a backend that is usable."""
    name, _, device = backend.partition(":")
    if name == "torch":
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        return Place(lambda a: torch.from_numpy(a).to(device), lambda _: wait(), _as_it_is)
    if name == "jax":
        home = jax.devices(device)[0]
        return Place(lambda a: jax.device_put(a, home), jax.block_until_ready, jax.jit)
    if name == "cupy":
        return Place(
            cupy.asarray, lambda _: cupy.cuda.get_current_stream().synchronize(), _as_it_is
        )
    return Place(np.array, lambda _: None, _as_it_is)
