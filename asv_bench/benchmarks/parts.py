"""The parts of a teleport on bare arrays: null space, projections, direction, for one layer.

X (rows, width),    D (width, width),    delta, Xdot (rows, width)
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from .common import BACKENDS, WIDTHS, Size, Timed, require
from .places import optional, place

nullport, net = optional("nullport"), optional("nullport.network")
nullspace, direction = optional("nullport._nullspace"), optional("nullport._direction")
capture = optional("nullport._capture")

FEW = 0.25
"""Rows of a batch over width, where only the projection or the direction is looked at."""


@cache
def arrays(backend: str, *shapes: tuple[int, int]) -> list[Any]:
    """Return normal random arrays, made once per process: asv sets up before every sample."""
    draw = np.random.default_rng(0)
    put = place(backend).put
    return [put(draw.standard_normal(shape).astype(np.float32)) for shape in shapes]


def space_of(x: Any, threshold: float = 0.0) -> Any:
    """Return the null space of the rows ``x`` (n, d): exact, or up to a share of the energy."""
    config = nullport.TeleportConfig(projection="threshold", threshold=threshold)
    site = net.DenseSite("dense", x, None, x[0, 0])
    return nullspace.null_space(
        [site],
        x.shape[1],
        config,
        bias=False,
        samples=x.shape[0],
        output_norm=x[0, 0],
        length=x[0, 0],
        together=net.Collective(),
    )


def no_graph() -> Any:
    """Return what a layer graph is by default: one device, nothing packed, and no network."""
    missing = dict.fromkeys(net.LayerGraph.__abstractmethods__)
    return type("NoGraph", (net.LayerGraph,), missing)()


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
        self.prepare(key, backend, lambda x: space_of(x).basis, x)

    time_row_space = Part.measured


class Projection(Part):
    """What each projection leaves of a direction, the row space being known."""

    params = (BACKENDS, WIDTHS, ("exact", "threshold", "budget"))
    param_names = ("backend", "width", "projection")

    def setup(self, backend: str, width: int, kind: str) -> None:
        size = Size(width, 1, int(FEW * width))
        require(backend, size.teleport, size.bytes)
        self.x, d, one = arrays(backend, (size.samples, width), (width, width), (1, 1))
        space = space_of(self.x, 0.0 if kind == "exact" else 0.01)

        def project(d: Any, one: Any) -> Any:
            known = space
            if kind == "budget":  # not known beforehand, or a compiler would find the gains
                ratio = (0.2 + 0 * one[0, 0]) / space.scale
                known = replace(space, gains=None, ratio=ratio)
            return known.project(d)[0]

        self.prepare((width, kind), backend, project, d, one)

    time_projection = Part.measured

    def track_leakage(self, backend: str, width: int, kind: str) -> float:
        """Output change of what is left over that of the whole direction."""
        x, d = self.x, self.given[0]
        return float(((self.run(*self.given) @ x.T) ** 2).sum() / ((d @ x.T) ** 2).sum()) ** 0.5


Projection.track_leakage.unit = "relative"  # type: ignore[attr-defined]


class Direction(Part):
    """``(delta^T Xdot) P`` and what it does to the outputs, the null space being known."""

    params = (BACKENDS, WIDTHS, (FEW, 0.75))
    param_names = ("backend", "width", "rows per width")

    def setup(self, backend: str, width: int, share: float) -> None:
        size = Size(width, 1, int(share * width))
        require(backend, size.teleport, size.bytes)
        rows = [(size.samples, width)] * 3
        given = arrays(backend, *rows)
        space, config = space_of(given[0]), nullport.TeleportConfig()
        block = capture.Block("weight", 0, net.matrix((), width, width), (0,))
        alone = no_graph()

        def find(x: Any, delta: Any, tangent: Any) -> Any:
            one = abs(x[0, 0])
            known = net.Linearization(one, [None], [net.DenseSite("dense", x, delta, one)])
            layer = capture.Layer(
                block, "dense", size.samples, one < 0, one, one, tight=False, exact=True, narrow=0.0
            )
            collected = direction.Directions(
                alone, [layer], known, config,
                length=0.1, scale=1.0, direct=None, spaces={0: space}, keep=True,
            )  # fmt: skip
            collected.receive(0, tangent)
            found = collected.found[0]
            made = found.delta.right if isinstance(found.delta, net.LowRank) else found.delta
            return made, found.size, found.bound

        self.prepare((width, share), backend, find, *given)

    time_direction = Part.measured


del Part
