"""Tables of vectors, looked up by token or by position.

Embedding    y = table[x],      dtable[v] = sum of dy where x is v,      dy = dtable[x]
Position     y_t = x_t + table[t],  dtable[t] = sum of dy_t,  dx = dy,   dy_t = dx_t + dtable[t]
"""

# ruff: noqa: ARG002 - every layer has the same signatures
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device

from nullport.network import Array, namespace
from nullport_arrays.layers._base import SILENT, Layer, Params, Watch
from nullport_arrays.layers._checks import at_least, shape
from nullport_arrays.layers._init import normal

CHUNK = 1 << 22
"""Largest number of elements of a one-hot matrix."""


@dataclass(frozen=True)
class Embedding(Layer):
    """A vector for each token: integers (...) from 0 to ``tokens - 1`` -> (..., width).

    Its pullback is a product with one-hot rows, made in chunks, since the standard cannot add to
    chosen rows: it costs as much as a dense layer of ``tokens`` inputs.

    Attributes:
        tokens: Number of different tokens.
        width: Size of their vectors.

    Raises:
        ValueError: If a size is no positive integer.
    """

    tokens: int
    width: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        at_least(1, tokens=self.tokens, width=self.width)

    def init(self, rng: np.random.Generator) -> Params:
        """Return ``table`` (tokens, width), standard normal."""
        return {"table": normal(rng, (self.tokens, self.width), 1.0)}

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Array]:
        """Return the vectors, and the tokens as the cache.

        Raises:
            ValueError: If ``x`` is not of integers.
        """
        if not namespace(x).isdtype(x.dtype, "integral"):
            msg = f"Embedding got tokens of dtype {x.dtype}; expected: an integer dtype"
            raise ValueError(msg)
        return self._rows(params["table"], x), x

    def pullback(
        self, params: Params, cache: Array, dy: Array, watch: Watch = SILENT
    ) -> tuple[None, Params]:
        """Return None for the integer input, and the cotangent of the table."""
        xp, count = namespace(dy), math.prod(cache.shape)
        flat, rows = xp.reshape(cache, (count, 1)), xp.reshape(dy, (count, self.width))
        every = xp.arange(self.tokens, device=device(cache))
        total = xp.zeros((self.tokens, self.width), dtype=dy.dtype, device=device(dy))
        size = max(1, CHUNK // self.tokens)
        for start in range(0, count, size):
            stop = min(start + size, count)
            chosen = xp.astype(flat[start:stop, :] == every, dy.dtype)
            total = total + xp.matrix_transpose(chosen) @ rows[start:stop, :]
        return None, {"table": total}

    def pushforward(
        self, params: Params, cache: Array, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the vectors; tokens have none, so ``dx`` is not looked at."""
        dtable = dparams.get("table")
        return None if dtable is None else self._rows(dtable, cache)

    def _rows(self, table: Array, x: Array) -> Array:
        xp = namespace(table)
        rows = xp.take(table, xp.reshape(x, (math.prod(x.shape),)), axis=0)
        return xp.reshape(rows, (*x.shape, self.width))


@dataclass(frozen=True)
class Position(Layer):
    """Adds a learned vector to each step: (n, up to ``steps``, width), shapes are kept.

    Attributes:
        steps: Largest number of steps.
        width: Size of the last axis.
        scale: Standard deviation of the vectors at first.

    Raises:
        ValueError: If a size is no positive integer.
    """

    steps: int
    width: int
    scale: float = 0.02

    def __post_init__(self) -> None:
        """Check the sizes."""
        at_least(1, steps=self.steps, width=self.width)

    def init(self, rng: np.random.Generator) -> Params:
        """Return ``table`` (steps, width), normal."""
        return {"table": normal(rng, (self.steps, self.width), self.scale)}

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the sum; the cache is the shape of ``x``.

        Raises:
            ValueError: If ``x`` is not (n, steps, width) with at most ``steps`` steps.
        """
        if x.ndim != 3 or x.shape[1] > self.steps or x.shape[2] != self.width:
            shape("Position", x, f"(n, at most {self.steps}, {self.width})")
        return x + params["table"][: x.shape[1], :], x.shape

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangents of the input and of the table, 0 where no step was."""
        xp, table = namespace(dy), namespace(dy).sum(dy, axis=0)
        if missing := self.steps - cache[1]:
            rest = xp.zeros((missing, self.width), dtype=dy.dtype, device=device(dy))
            table = xp.concat([table, rest], axis=0)
        return dy, {"table": table}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the sum."""
        dtable = dparams.get("table")
        if dtable is None:
            return dx
        rows = dtable[: cache[1], :]
        return namespace(rows).broadcast_to(rows, cache) if dx is None else dx + rows
