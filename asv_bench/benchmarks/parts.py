"""The parts of a teleport on bare arrays: null space, projections, direction, for one layer.

X (rows, width),    D (width, width),    delta, Xdot (rows, width)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .common import BACKENDS, WIDTHS, Size, Timed, require
from .places import optional, place

rowspace, projection = optional("nullport._rowspace"), optional("nullport._projection")
budget, direction = optional("nullport._budget"), optional("nullport._direction")
graph, capture = optional("nullport._graph"), optional("nullport._capture")
layout = optional("nullport._layout")

FEW = 0.25
"""Rows of a batch over width, where only the projection or the direction is looked at."""


@cache
def arrays(backend: str, *shapes: tuple[int, int]) -> list[Any]:
    """Return normal random arrays, made once per process: asv sets up before every sample."""
    draw = np.random.default_rng(0)
    put = place(backend).put
    return [put(draw.standard_normal(shape).astype(np.float32)) for shape in shapes]


class Part(Timed):
    """A function of arrays, called once before it is timed and waited for."""

    params: Any = ()

    def prepare(self, key: Any, backend: str, function: Any, *given: Any) -> None:
        self.run, self.wait, self.given = (
            compiled(key, backend, function),
            place(backend).wait,
            given,
        )
        self.wait(self.run(*given))

    def measured(self, *_: Any) -> None:
        self.wait(self.run(*self.given))


@cache
def _kept() -> dict[Any, Any]:
    return {}


def compiled(key: Any, backend: str, function: Any) -> Any:
    """Return the function compiled for the backend, once per process."""
    kept = _kept()
    if key not in kept:
        kept[key] = place(backend).compiled(function)
    return kept[key]


class NullSpace(Part):
    """Row space of a layer's inputs: QR of a quarter of ``width`` rows, or Gram matrix of twice."""

    params = (BACKENDS, WIDTHS, (FEW, 2.0))
    param_names = ("backend", "width", "rows per width")

    def setup(self, backend: str, width: int, share: float) -> None:
        size = Size(width, 1, int(share * width))
        require(backend, size.null_space, size.bytes)
        (x,) = arrays(backend, (size.samples, width))
        key = (width, share)
        self.prepare(key, backend, lambda x: rowspace.row_space([x], x.shape[0]).basis, x)

    time_row_space = Part.measured


class Projection(Part):
    """What each projection leaves of a direction, the row space being known."""

    params = (BACKENDS, WIDTHS, ("exact", "threshold", "budget"))
    param_names = ("backend", "width", "projection")

    def setup(self, backend: str, width: int, kind: str) -> None:
        size = Size(width, 1, int(FEW * width))
        require(backend, size.teleport, size.bytes)
        self.x, d, one = arrays(backend, (size.samples, width), (width, width), (1, 1))
        space = rowspace.row_space([self.x], size.samples, spectrum=kind != "exact")

        def project(d: Any, one: Any) -> Any:
            if kind == "budget":
                length = abs(one[0, 0])
                return budget.BudgetFilter(space, 0.2 * length, length).apply(d)
            return projection.threshold_filter(space, 0.01 if kind == "threshold" else 0.0).apply(d)

        self.prepare((width, kind), backend, project, d, one)

    time_projection = Part.measured

    def track_leakage(self, backend: str, width: int, kind: str) -> float:
        """Output change of what is left over that of the whole direction."""
        x, d = self.x, self.given[0]
        return float(((self.run(*self.given) @ x.T) ** 2).sum() / ((d @ x.T) ** 2).sum()) ** 0.5


Projection.track_leakage.unit = "relative"  # type: ignore[attr-defined]


class Direction(Part):
    """``(delta^T Xdot) P`` and its norm, the null space being known."""

    params = (BACKENDS, WIDTHS, (FEW, 0.75))
    param_names = ("backend", "width", "rows per width")

    def setup(self, backend: str, width: int, share: float) -> None:
        size = Size(width, 1, int(share * width))
        require(backend, size.teleport, size.bytes)
        rows = [(size.samples, width)] * 3
        given = arrays(backend, *rows)
        space = rowspace.row_space([given[0]], size.samples)
        block = capture.Block("weight", 0, layout.matrix((), width, width), (0,))

        def find(x: Any, delta: Any, tangent: Any) -> Any:
            site = graph.DenseSite("dense", x, delta, x[0, 0])
            known = graph.Linearization(x[0, 0], [None], [site])
            filters = [projection.threshold_filter(space, 0.0)]
            got: dict[int, Any] = {}
            collected = direction.Accumulator(
                [block], filters, known, lambda _: None, got.__setitem__
            )
            collected.receive(0, tangent)
            return got[0].right, got[0].size

        self.prepare((width, share), backend, find, *given)

    time_direction = Part.measured


del Part
