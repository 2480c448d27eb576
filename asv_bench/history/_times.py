"""Processor time of a training gradient and of a teleport, called in turns in one process.

With one thread that is the time by the clock, but for what else the machine does, which a history
of months cannot be kept free of.

asv runs every parameter of a benchmark in a process of its own, where JAX would compile anew; here
one process per graph times all of its points, and the benchmarks read what it found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from benchmarks.common import Function, Size, medians
from benchmarks.places import usable

BACKENDS = ("numpy", "torch", "jax")

Times = tuple[float, float] | str
"""Seconds of a gradient and of a teleport, or what was raised in their place."""

Found = dict[tuple[str, int], Times]
Pair = Callable[[str, Size], tuple[Function, Function]]

COMPILED = Size(128, 4)
"""The largest network for JAX, which compiles every commit's anew: most of the time of a commit."""

SECONDS = 0.5
"""Time for all turns of a point, after which no turn starts but the third."""

ABSENT = math.nan, math.nan
"""asv shows it as "n/a"."""


def times(pair: Pair, sizes: Mapping[int, Size], backends: Iterable[str] = BACKENDS) -> Found:
    """Return the times by backend and by the value on the axis of the graph.

    Args:
        pair: Returns the functions that make a gradient and a teleport; None or a missing module
            stand for an adapter that the commit does not have.
        sizes: By the value on the axis.
        backends: Names without their device, which is the processor.
    """
    return {(b, value): _times(pair, b, size) for b in backends for value, size in sizes.items()}


def _times(pair: Pair, backend: str, size: Size) -> Times:
    place, compiles = f"{backend}:cpu", backend == "jax"
    if not usable(place) or not adapter(backend):
        return ABSENT
    if compiles and (size.width > COMPILED.width or size.depth > COMPILED.depth):
        return ABSENT
    try:
        gradient, teleport = medians(
            *pair(place, size), seconds=SECONDS, repeats=(3, 60), clock=time.process_time
        )
    except Exception as error:  # the other points of the graph are still measured
        return repr(error)
    return gradient, teleport


def adapter(backend: str) -> object:
    """Return the adapter of the commit, or None if it does not have it."""
    from benchmarks import networks

    names = {"torch": "nullport_torch", "jax": "nullport_jax", "numpy": "nullport_arrays"}
    return getattr(networks, names[backend])


def gradients(found: Times) -> float:
    """Return the teleport's time in training gradients."""
    gradient, teleport = _valid(found)
    return teleport / gradient


def milliseconds(found: Times) -> float:
    """Return the teleport's time in milliseconds."""
    return 1e3 * _valid(found)[1]


def _valid(found: Times) -> tuple[float, float]:
    """Return the times.

    Raises:
        RuntimeError: If their measurement raised.
    """
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def shown(name: str, unit: str) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Give a benchmark the name and the unit that the graphs show."""

    def decorate(benchmark: Callable[..., float]) -> Callable[..., float]:
        benchmark.pretty_name, benchmark.unit = name, unit  # type: ignore[attr-defined]
        return benchmark

    return decorate
