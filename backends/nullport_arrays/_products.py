"""Which product of its input and its weight a layer computes: found by trying.

    in_out   y = x W + b,        x (..., in), W (in, out)
    out_in   y = x W^T + b,      x (..., in), W (out, in)
    columns  y = W x + b,        x (in, samples), W (out, in)

Inputs with more axes are taken row by row, or flattened sample by sample, whichever fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from nullport.network import Array, namespace, norm, widen

TOLERANCE = 1e-3
"""Relative difference by which an output may miss the product that it is taken for."""

PROBED = 16
"""Rows on which an output is compared with a product."""


@dataclass
class Seen:
    """What passed through a layer.

    Attributes:
        x: Its input.
        y: Its output.
        dy: The cotangent of its output, or None before the backward pass.
    """

    x: Array
    y: Array
    dy: Array | None = None


@dataclass(frozen=True)
class Product:
    """A layer as a product of rows.

    Attributes:
        orientation: How its weight is stored.
        x: Inputs, shape (samples, in).
        delta: Cotangents, shape (samples, out).
    """

    orientation: str
    x: Array
    delta: Array


def product_of(seen: Seen, weight: Array, bias: Array | None) -> Product | None:
    """Return the product that a layer computes, or None if it is none of those that are known."""
    if weight.ndim != 2 or seen.dy is None or seen.dy.shape != seen.y.shape:
        return None
    xp = namespace(weight)
    turned = xp.matrix_transpose
    for orientation, x, y, dy in _candidates(seen, weight):
        matrix = weight if orientation == "in_out" else turned(weight)
        if matrix.shape[0] != x.shape[-1] or matrix.shape[1] != y.shape[-1]:
            continue
        every = max(1, x.shape[0] // PROBED)
        expected = widen(x[::every, :]) @ widen(matrix)
        if bias is not None:
            expected = expected + xp.reshape(widen(bias), (1, -1))
        found = widen(y[::every, :])
        if bool(norm(found - expected) <= TOLERANCE * norm(expected)):
            return Product(orientation, x, dy)
    return None


def _candidates(seen: Seen, weight: Array) -> Iterator[tuple[str, Array, Array, Array]]:
    """Yield (orientation, inputs, outputs, cotangents), each of the last three as rows."""
    xp = namespace(seen.x)
    assert seen.dy is not None  # product_of has checked
    for orientation in ("in_out", "out_in"):
        features = weight.shape[0] if orientation == "in_out" else weight.shape[1]
        by_row = seen.x.shape[-1] == features
        if not by_row and prod(seen.x.shape[1:]) != features:
            continue
        x = xp.reshape(seen.x, (-1, features))
        if prod(seen.y.shape) % x.shape[0] == 0:
            y, dy = (xp.reshape(a, (x.shape[0], -1)) for a in (seen.y, seen.dy))
            yield orientation, x, y, dy
    if seen.x.ndim == seen.y.ndim == 2:
        turned = xp.matrix_transpose
        yield "out_in", turned(seen.x), turned(seen.y), turned(seen.dy)
