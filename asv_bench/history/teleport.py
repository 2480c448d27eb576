"""The time of a one-step teleport by the paper's objective, on a GELU MLP of square layers."""

from __future__ import annotations

from benchmarks.common import Function, Size, sizes
from benchmarks.networks import network

from ._times import BACKENDS, Found, gradients, milliseconds, shown, times

WIDTHS = {width: Size(width, 4, 64) for width in sizes(128, 512, 1024)}
DEPTHS = {depth: Size(128, depth, 64) for depth in sizes(2, 6, 18)}


def whole(place: str, size: Size) -> tuple[Function, Function]:
    """Return a gradient and a teleport."""
    made = network(place, size)
    return made.gradient, made.teleport


class Width:
    version = "1"
    params = (BACKENDS, tuple(WIDTHS))
    param_names = ("backend", "width")

    def setup_cache(self) -> Found:
        return times(whole, WIDTHS)

    setup_cache.timeout = 300  # type: ignore[attr-defined]

    @shown("Teleport, depth 4, 64 samples: time in training gradients", "gradients")
    def track_gradients(self, found: Found, backend: str, width: int) -> float:
        return gradients(found[backend, width])

    @shown("Teleport, depth 4, 64 samples: time in milliseconds", "ms")
    def track_milliseconds(self, found: Found, backend: str, width: int) -> float:
        return milliseconds(found[backend, width])


class Depth:
    version = "1"
    params = (BACKENDS, tuple(DEPTHS))
    param_names = ("backend", "depth")

    def setup_cache(self) -> Found:
        return times(whole, DEPTHS)

    setup_cache.timeout = 300  # type: ignore[attr-defined]

    @shown("Teleport, width 128, 64 samples: time in training gradients", "gradients")
    def track_gradients(self, found: Found, backend: str, depth: int) -> float:
        return gradients(found[backend, depth])

    @shown("Teleport, width 128, 64 samples: time in milliseconds", "ms")
    def track_milliseconds(self, found: Found, backend: str, depth: int) -> float:
        return milliseconds(found[backend, depth])
