"""Rivals and nullport on one network: seconds of a teleport, next to one training gradient.

A bias-free LeakyReLU MLP on random data, the class that every method can handle. Methods that take
steps take ten of them, nullport's one-step row one. Each has the first setting of its grid in
``asv_bench/rivals/settings.py``: what a method costs hardly depends on it, what it gains does, and
is measured by ``asv_bench/rivals_table.py``. Weights are put back before every call.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from .common import DEPTHS, WIDTHS, Size, Timed, budget, medians, require
from .networks import CLASSES
from .places import torch

METHODS = (
    "nullport, exact, 1 step",
    "nullport, exact",
    "literal",
    "symmetry 2022",
    "symmetry 2024",
    "level set",
    "rescaling",
)
STEPS, LR = 2 if budget() == "quick" else 10, 0.03
SLOW = 5
"""How many times as many operations a rival may take as what is timed more often."""


@cache
def problem(size: Size) -> tuple[Any, Any, list]:
    """Return the problem, its start, and the settings of rivals, which lie next to this package."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from rivals import settings

    from nullport_torch.lab.baselines.chains import mlp
    from nullport_torch.lab.baselines.problem import Problem

    model = mlp([size.width] * (size.depth + 1) + [CLASSES])
    x, y = torch.randn(size.samples, size.width), torch.randint(0, CLASSES, (size.samples,))
    made = Problem(model, x, y)
    return settings, made, made.values()


def operations(method: str, size: Size) -> float:
    """Return roughly what a method needs; dense projectors and Hessians cost the literal recipe."""
    if method == "literal":
        return STEPS * size.depth * 2.0 * size.width**3
    return size.teleport * (1 if method == METHODS[0] else 2 * STEPS)


class Rivals(Timed):
    """What is measured of every size; subclasses say how a parameter becomes one."""

    params: Any = (METHODS, ())
    repeat, rounds, warmup_time = (2, 5, 5.0), 1, 0.0

    @staticmethod
    def size(value: int) -> Size:
        raise NotImplementedError

    def setup(self, method: str, value: int) -> None:
        size = self.size(value)
        require("torch:cpu", operations(method, size) / SLOW, size.bytes)
        settings, self.problem, self.start = problem(size)
        rival = settings.RIVALS[method]
        first = rival.settings()[0]
        self.teleport = settings.run(rival, self.problem, first, steps=STEPS, lr=LR)
        self.problem.assign(self.start)

    def time_teleport(self, method: str, value: int) -> None:
        self.teleport()

    def track_gradients(self, method: str, value: int) -> float:
        def again() -> None:
            self.problem.assign(self.start)
            self.teleport()

        gradient, teleport = medians(self.problem.gradient, again, repeats=(2, 9))
        return teleport / gradient


Rivals.track_gradients.unit = "gradients"  # type: ignore[attr-defined]


class RivalsWidth(Rivals):
    params = (METHODS, WIDTHS)
    param_names = ("method", "width")

    @staticmethod
    def size(value: int) -> Size:
        return Size(value, samples=min(64, value // 2))


class RivalsDepth(Rivals):
    params = (METHODS, DEPTHS)
    param_names = ("method", "depth")

    @staticmethod
    def size(value: int) -> Size:
        return Size(256, value)


del Rivals
