"""Layers without parameters that reduce or rearrange: linear but for the maximum.

    Flatten      y = x, reshaped                 dx = dy, reshaped back
    Mean         y = mean of x over positions    dx = dy / number of positions, at each of them
    MaxPool2d    y = x where it is largest       dx = dy there, else 0

The pushforward of each is its forward with the choice of the largest held fixed.
"""

# ruff: noqa: ARG002 - every layer has the same signatures
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from nullport.network import Array, namespace
from nullport_arrays.layers._base import SILENT, Layer, Parameterless, Params, Watch
from nullport_arrays.layers._checks import at_least, image, shape
from nullport_arrays.layers._unfold import pad


@dataclass(frozen=True)
class Flatten(Parameterless, Layer):
    """Makes one axis of all axes but the first: (n, ...) -> (n, features), row by row.

    Attributes:
        keep: Number of leading axes that stay; with 2, (n, steps, ...) -> (n, steps, features).

    Raises:
        ValueError: If ``keep`` is no positive integer.
    """

    keep: int = 1

    def __post_init__(self) -> None:
        """Check the number of axes."""
        at_least(1, keep=self.keep)

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the flat input; the cache is the two shapes.

        Raises:
            ValueError: If ``x`` has fewer than ``keep`` axes.
        """
        if x.ndim < self.keep:
            shape("Flatten", x, f"at least {self.keep} axes")
        flat = (*x.shape[: self.keep], math.prod(x.shape[self.keep :]))
        return namespace(x).reshape(x, flat), (x.shape, flat)

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangent, shaped like the input."""
        return namespace(dy).reshape(dy, cache[0]), {}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent, shaped like the output."""
        return None if dx is None else namespace(dx).reshape(dx, cache[1])


@dataclass(frozen=True)
class Mean(Parameterless, Layer):
    """Averages over positions, steps or pixels: (n, ..., features) -> (n, features)."""

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the mean; the cache is the shape of ``x``.

        Raises:
            ValueError: If ``x`` has no positions.
        """
        if x.ndim < 3 or 0 in x.shape[1:-1]:
            shape("Mean", x, "(n, ..., features), with at least one position in between")
        return _mean(x), x.shape

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangent of the input."""
        xp, n, features = namespace(dy), cache[0], cache[-1]
        count = math.prod(cache[1:-1])
        share = xp.reshape(dy * (1.0 / count), (n, *(1 for _ in cache[1:-1]), features))
        return xp.broadcast_to(share, cache), {}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the mean."""
        return None if dx is None else _mean(dx)


def _mean(x: Array) -> Array:
    return namespace(x).mean(x, axis=tuple(range(1, x.ndim - 1)))


@dataclass(frozen=True)
class MaxPool2d(Parameterless, Layer):
    """The largest pixel of each square, the first of equals, channel by channel.

    (n, height, width, c) -> (n, height // size, width // size, c); what is left over is dropped.

    Attributes:
        size: Side of the squares.

    Raises:
        ValueError: If ``size`` is no positive integer.
    """

    size: int = 2

    def __post_init__(self) -> None:
        """Check the size."""
        at_least(1, size=self.size)

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the maxima; the cache is where they are, and the shape of ``x``.

        Raises:
            ValueError: If ``x`` is not (n, height, width, c) or smaller than a square.
        """
        image("MaxPool2d", x)
        if min(x.shape[1:3]) < self.size:
            shape("MaxPool2d", x, f"height and width of at least {self.size}")
        xp, squares = namespace(x), self._squares(x)
        y = xp.max(squares, axis=0)
        chosen = _first(squares == y[None, ...])
        return y, (xp.astype(chosen, x.dtype), x.shape)

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangent of the input."""
        chosen, (n, height, width, c) = cache
        xp, size, (high, wide) = namespace(dy), self.size, dy.shape[1:3]
        parts = xp.reshape(chosen * dy, (size, size, n, high, wide, c))
        parts = xp.permute_dims(parts, (2, 3, 0, 4, 1, 5))
        dx = xp.reshape(parts, (n, high * size, wide * size, c))
        return pad(pad(dx, 1, 0, height - high * size), 2, 0, width - wide * size), {}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the maxima."""
        return None if dx is None else namespace(dx).sum(cache[0] * self._squares(dx), axis=0)

    def _squares(self, x: Array) -> Array:
        """Return the pixels of the squares: (size^2, n, out height, out width, c)."""
        size, (_, height, width, _) = self.size, x.shape
        x = x[:, : height // size * size, : width // size * size, :]
        pixels = [x[:, i::size, j::size, :] for i in range(size) for j in range(size)]
        return namespace(x).stack(pixels, axis=0)


def _first(hits: Array) -> Array:
    """Keep the first true along the first axis (NumPy's argmax takes ten times as long)."""
    xp, kept = namespace(hits), []
    free = xp.ones(hits.shape[1:], dtype=xp.bool, device=device(hits))
    for i in range(hits.shape[0]):
        kept.append(xp.logical_and(hits[i, ...], free))
        free = xp.logical_and(free, xp.logical_not(hits[i, ...]))
    return xp.stack(kept, axis=0)
