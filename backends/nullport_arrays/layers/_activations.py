"""Elementwise functions ``y = f(x)``, with slope ``f'``.

    forward      y = f(x)
    pullback     dx = f'(x) dy
    pushforward  dy = f'(x) dx

The standard has no error function, so :class:`GELU` is its tanh approximation, which differs from
the exact one by at most 5e-4.
"""

# ruff: noqa: ARG002 - every layer has the same signatures
from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from nullport.network import Array, namespace
from nullport_arrays.layers._base import SILENT, Layer, Parameterless, Params, Watch


class Elementwise(Parameterless, Layer):
    """A layer that is a function of each element by itself."""

    @abstractmethod
    def value(self, x: Array) -> Array:
        """Return ``f(x)``."""

    @abstractmethod
    def slope(self, x: Array, y: Array) -> Array:
        """Return ``f'(x)``, where ``y = f(x)``."""

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the output, shaped like ``x``; the cache is both."""
        y = self.value(x)
        return y, (x, y)

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangent of the input."""
        return dy * self.slope(*cache), {}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output."""
        return None if dx is None else dx * self.slope(*cache)


@dataclass(frozen=True)
class ReLU(Elementwise):
    """``max(x, 0)``, with slope 0 at 0."""

    def value(self, x: Array) -> Array:
        """Return ``max(x, 0)``."""
        xp = namespace(x)
        return xp.maximum(x, xp.zeros((), dtype=x.dtype, device=device(x)))

    def slope(self, x: Array, y: Array) -> Array:
        """Return 1 where ``x > 0``, else 0."""
        return namespace(x).astype(y > 0, x.dtype)


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """``x`` where ``x > 0``, else ``leak x``.

    Attributes:
        leak: Slope on the negative side, in [0, 1).

    Raises:
        ValueError: If ``leak`` is outside that.
    """

    leak: float = 0.01

    def __post_init__(self) -> None:
        """Check the slope."""
        if not 0 <= self.leak < 1:
            msg = f"leak is {self.leak!r}; allowed: a number in [0, 1)"
            raise ValueError(msg)

    def value(self, x: Array) -> Array:
        """Return the larger of ``x`` and ``leak x``."""
        return namespace(x).maximum(x, self.leak * x)

    def slope(self, x: Array, y: Array) -> Array:
        """Return 1 where ``x > 0``, else ``leak``."""
        return self.leak + (1.0 - self.leak) * namespace(x).astype(x > 0, x.dtype)


@dataclass(frozen=True)
class Tanh(Elementwise):
    """The hyperbolic tangent."""

    def value(self, x: Array) -> Array:
        """Return ``tanh(x)``."""
        return namespace(x).tanh(x)

    def slope(self, x: Array, y: Array) -> Array:
        """Return ``1 - y^2``."""
        return 1.0 - y * y


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """The logistic function ``1 / (1 + exp(-x))``."""

    def value(self, x: Array) -> Array:
        """Return it, by way of a tanh, which cannot overflow."""
        return _sigmoid(x)

    def slope(self, x: Array, y: Array) -> Array:
        """Return ``y (1 - y)``."""
        return y * (1.0 - y)


@dataclass(frozen=True)
class SiLU(Elementwise):
    """``x sigmoid(x)``, also known as swish."""

    def value(self, x: Array) -> Array:
        """Return ``x sigmoid(x)``."""
        return x * _sigmoid(x)

    def slope(self, x: Array, y: Array) -> Array:
        """Return ``s + y (1 - s)`` with ``s = sigmoid(x)``."""
        s = _sigmoid(x)
        return s + y * (1.0 - s)


C = math.sqrt(2 / math.pi)
CUBIC = 0.044715


@dataclass(frozen=True)
class GELU(Elementwise):
    """The tanh approximation: ``x (1 + tanh(u)) / 2``, ``u = sqrt(2/pi) (x + 0.044715 x^3)``."""

    def value(self, x: Array) -> Array:
        """Return it."""
        return 0.5 * x * (1.0 + _gelu_tanh(x))

    def slope(self, x: Array, y: Array) -> Array:
        """Return ``(1 + t + x (1 - t^2) u') / 2`` with ``t = tanh(u)``."""
        t = _gelu_tanh(x)
        steepness = C + 3.0 * C * CUBIC * x * x
        return 0.5 * (1.0 + t + x * (1.0 - t * t) * steepness)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + namespace(x).tanh(0.5 * x))


def _gelu_tanh(x: Array) -> Array:
    return namespace(x).tanh(x * (C + C * CUBIC * x * x))
