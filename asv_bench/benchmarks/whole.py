"""A whole teleport, next to one training gradient of the same network on the same batch.

Width is varied at depth 4, depth at width 256 (64 samples each), samples at width 1024 and depth 4.
Layers of 64 inputs get 32 samples, so that every layer of the first two has an exact null space.
"""

from __future__ import annotations

import math
from typing import Any

from .common import BACKENDS, DEPTHS, SAMPLES, WIDTHS, Size, Timed, medians, require, sizes
from .networks import network

RADIUS = 0.1
"""Radius of the teleports whose effect is measured."""


class Whole(Timed):
    """What is measured of every size; subclasses say how a parameter becomes one."""

    params: Any = (BACKENDS, ())

    @staticmethod
    def size(value: int) -> Size:
        raise NotImplementedError

    def setup(self, backend: str, value: int) -> None:
        size = self.size(value)
        require(backend, size.teleport, size.bytes)
        self.case = network(backend, size)
        self.case.gradient()

    def time_gradient(self, backend: str, value: int) -> None:
        self.case.gradient()

    def time_teleport(self, backend: str, value: int) -> None:
        self.case.teleport()

    def track_gradients(self, backend: str, value: int) -> float:
        gradient, teleport = medians(self.case.gradient, self.case.teleport)
        return teleport / gradient


Whole.track_gradients.unit = "gradients"  # type: ignore[attr-defined]


class Memory:
    """Peak memory of the process, with its interpreter, framework and weights."""

    def peakmem_gradient(self, backend: str, value: int) -> None:
        self.case.gradient()

    def peakmem_teleport(self, backend: str, value: int) -> None:
        self.case.teleport()


class Width(Memory, Whole):
    params = (BACKENDS, WIDTHS)
    param_names = ("backend", "width")

    @staticmethod
    def size(value: int) -> Size:
        return Size(value, samples=min(64, value // 2))

    def track_gain_per_second(self, backend: str, width: int) -> float:
        report = self.case.teleport(radius=RADIUS)
        gain = math.log(float(report.grad_norm_after) / float(report.grad_norm_before))
        return gain / medians(self.case.teleport)[0]


Width.track_gain_per_second.unit = "log(gradient norm) per second"  # type: ignore[attr-defined]


class Depth(Whole):
    params = (BACKENDS, DEPTHS)
    param_names = ("backend", "depth")

    @staticmethod
    def size(value: int) -> Size:
        return Size(256, value)


class Samples(Memory, Whole):
    params = (BACKENDS, SAMPLES)
    param_names = ("backend", "samples")

    @staticmethod
    def size(value: int) -> Size:
        return Size(1024, samples=value)


# The common parts are not benchmarks themselves: asv takes every class it finds.
del Whole, Memory


class Step:
    """One ascent step after the first, in gradients: ``(T(6) - T(1)) / 5 T(gradient)``."""

    params = (BACKENDS, sizes(64, 256, 1024, 2048))
    param_names = ("backend", "width")
    timeout = Timed.timeout
    unit = "gradients"

    def setup(self, backend: str, width: int) -> None:
        size = Size(width, samples=min(256, width // 2))
        require(backend, size.teleport, size.bytes)
        self.case = network(backend, size)

    def track_gradients(self, backend: str, width: int) -> float:
        case = self.case
        gradient, one, six = medians(case.gradient, case.teleport, lambda: case.teleport(6))
        return (six - one) / 5 / gradient


class Numerics:
    """What a teleport does to the loss, which stays, and to the gradient's norm, which grows."""

    params = (BACKENDS, ("float32", "float64"))
    param_names = ("backend", "dtype")
    timeout = Timed.timeout

    def setup(self, backend: str, dtype: str) -> None:
        size = Size(128, samples=32)
        require(backend, size.teleport, size.bytes)
        self.report = network(backend, size, dtype).teleport(radius=RADIUS)

    def track_loss_change(self, backend: str, dtype: str) -> float:
        before, after = float(self.report.loss_before), float(self.report.loss_after)
        return abs(after / before - 1)

    def track_gain(self, backend: str, dtype: str) -> float:
        return float(self.report.grad_norm_after) / float(self.report.grad_norm_before)


Numerics.track_loss_change.unit = "relative"  # type: ignore[attr-defined]
Numerics.track_gain.unit = "gradient norm, after over before"  # type: ignore[attr-defined]
