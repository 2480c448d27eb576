"""Layer normalisation over the last axis.

With mean ``m`` and variance ``v`` of the last axis, ``r = 1/sqrt(v + eps)``, ``z = r (x - m)``, and
``N t = r (t - mean(t) - z mean(z t))``, which is the derivative of ``z`` and symmetric:

    forward      y = scale z + shift
    pullback     dx = N (scale dy),  dscale = sum of z dy,  dshift = sum of dy
    pushforward  dy = scale N dx + z dscale + dshift
"""

# ruff: noqa: ARG002 - every layer has the same signatures
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nullport.network import Array, namespace
from nullport_arrays.layers._base import SILENT, Layer, Params, Watch, flat, plus
from nullport_arrays.layers._checks import at_least, features


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Makes mean 0 and variance 1 of the last axis, then scales and shifts: shapes are kept.

    Attributes:
        size: Size of the last axis.
        eps: Added to the variance.

    Raises:
        ValueError: If the size is no positive integer or ``eps`` is negative.
    """

    size: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Check the size."""
        at_least(1, size=self.size)
        if self.eps < 0:
            msg = f"eps is {self.eps}; allowed: 0 or more"
            raise ValueError(msg)

    def init(self, rng: np.random.Generator) -> Params:
        """Return ``scale`` (size,) of ones and ``shift`` (size,) of zeros."""
        return {"scale": np.ones(self.size, np.float32), "shift": np.zeros(self.size, np.float32)}

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the output; the cache is ``z`` and ``r`` (..., 1)."""
        features("LayerNorm", x, self.size)
        xp = namespace(x)
        centred = x - _mean(x)
        r = 1.0 / xp.sqrt(_mean(centred * centred) + self.eps)
        z = centred * r
        return z * params["scale"] + params["shift"], (z, r)

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangents of the input, of scale and shift."""
        xp = namespace(dy)
        scale, shift = xp.sum(flat(cache[0] * dy), axis=0), xp.sum(flat(dy), axis=0)
        grads = {"scale": scale, "shift": shift}
        return _normal(cache, dy * params["scale"]), grads

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output."""
        z, dscale, dshift = cache[0], dparams.get("scale"), dparams.get("shift")
        dy = None if dx is None else _normal(cache, dx) * params["scale"]
        if dscale is not None:
            dy = plus(dy, z * dscale)
        if dy is None and dshift is not None:
            return namespace(z).broadcast_to(dshift, z.shape)
        return plus(dy, dshift)


def _mean(x: Array) -> Array:
    return namespace(x).mean(x, axis=-1, keepdims=True)


def _normal(cache: Any, t: Array) -> Array:
    """Return ``N t``."""
    z, r = cache
    return r * (t - _mean(t) - z * _mean(z * t))
