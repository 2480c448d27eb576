"""Multi-head softmax self-attention, from four dense layers.

Per head, with ``Q, K, V`` (steps, width/heads) its part of what the dense layers ``query``, ``key``
and ``value`` return, ``c = sqrt(heads/width)``, and ``D(A) T = A (T - sum(A T))`` the derivative of
the softmax, which is symmetric:

    forward      S = c Q K^T,  A = softmax(S),  O = A V,  y = out(O of all heads)
    pullback     dA = dO V^T,  dS = c D(A) dA,  dQ = dS K,  dK = dS^T Q,  dV = A^T dO
    pushforward  dA = D(A) c (dQ K^T + Q dK^T),  dO = dA V + A dV

With ``causal``, ``S`` is minus infinity where a step would see a later one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from array_api_compat import device

from nullport.network import Array, namespace
from nullport_arrays.layers._base import SILENT, Layer, Params, Watch, plus, settle
from nullport_arrays.layers._checks import divides, shape
from nullport_arrays.layers._dense import Dense
from nullport_arrays.layers._init import Init

INPUTS = ("query", "key", "value")


@dataclass(frozen=True, init=False)
class Attention(Layer):
    """Self-attention: (n, steps, width) -> (n, steps, width).

    Attributes:
        width: Size of the last axis.
        heads: Number of parts of it that attend by themselves.
        causal: Whether a step sees no later one.
        bias: Whether the dense layers ``query``, ``key``, ``value`` and ``out`` have a bias.
        scheme: How their weights start.
    """

    width: int
    heads: int
    causal: bool
    bias: bool
    scheme: Init

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = False,
        bias: bool = True,
        init: Init = "default",
    ) -> None:
        """Choose sizes and initialisation, ``"default"`` or ``"he"``.

        Raises:
            ValueError: If ``heads`` does not divide ``width`` or the initialisation is unknown.
        """
        divides("heads", heads, width=width)
        settle(self, width=width, heads=heads, causal=causal, bias=bias, scheme=init)
        _ = self.dense  # checks the initialisation

    @cached_property
    def dense(self) -> Dense:
        """What each of the four dense layers is."""
        return Dense(self.width, self.width, self.bias, self.scheme)

    def init(self, rng: np.random.Generator) -> Params:
        """Return the parameters of ``query``, ``key``, ``value`` and ``out``."""
        return {name: self.dense.init(rng) for name in (*INPUTS, "out")}

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the output; the cache is that of the dense layers, and Q, K, V, A.

        Raises:
            ValueError: If ``x`` is not (n, steps, width).
        """
        if x.ndim != 3 or x.shape[-1] != self.width:
            shape("Attention", x, f"(n, steps, {self.width})")
        xp = namespace(x)
        made = [self.dense.forward(params[name], x, watch[name]) for name in INPUTS]
        q, k, v = (self._split(part) for part, _ in made)
        a = self._softmax((self._scale * q) @ xp.matrix_transpose(k))
        y, out = self.dense.forward(params["out"], self._merge(a @ v), watch["out"])
        return y, ([cache for _, cache in made], out, (q, k, v, a))

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangents of the input and of the dense layers' parameters."""
        xp = namespace(dy)
        caches, out, (q, k, v, a) = cache
        do, grads = self.dense.pullback(params["out"], out, dy, watch["out"])
        do = self._split(do)
        ds = self._scale * _softmax_derivative(a, do @ xp.matrix_transpose(v))
        heads = (ds @ k, xp.matrix_transpose(ds) @ q, xp.matrix_transpose(a) @ do)
        pulled = {
            name: self.dense.pullback(params[name], one, self._merge(dhead), watch[name])
            for name, one, dhead in zip(INPUTS, caches, heads, strict=True)
        }
        dx = reduce(plus, (dx for dx, _ in pulled.values()))
        return dx, {**{name: grad for name, (_, grad) in pulled.items()}, "out": grads}

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output."""
        caches, out, heads = cache
        pushed = (
            self.dense.pushforward(params[name], one, dx, dparams.get(name, {}), watch[name])
            for name, one in zip(INPUTS, caches, strict=True)
        )
        dheads = [None if one is None else self._split(one) for one in pushed]
        do = self._attended(heads, *dheads)
        do = None if do is None else self._merge(do)
        return self.dense.pushforward(params["out"], out, do, dparams.get("out", {}), watch["out"])

    def _attended(self, heads: Any, dq: Any, dk: Any, dv: Any) -> Array | None:
        """Return the tangent of O from those of Q, K and V, each of which may be None."""
        q, k, v, a = heads
        transposed = namespace(a).matrix_transpose
        ds = None if dq is None else dq @ transposed(k)
        ds = ds if dk is None else plus(ds, q @ transposed(dk))
        do = None if ds is None else _softmax_derivative(a, self._scale * ds) @ v
        return do if dv is None else plus(do, a @ dv)

    @property
    def _scale(self) -> float:
        return 1.0 / math.sqrt(self.width // self.heads)

    def _split(self, x: Array) -> Array:
        """Part the heads: (n, steps, width) -> (n, heads, steps, width / heads)."""
        xp = namespace(x)
        parted = xp.reshape(x, (*x.shape[:2], self.heads, self.width // self.heads))
        return xp.permute_dims(parted, (0, 2, 1, 3))

    def _merge(self, x: Array) -> Array:
        """Undo :meth:`_split`."""
        xp = namespace(x)
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (x.shape[0], x.shape[2], self.width))

    def _softmax(self, scores: Array) -> Array:
        """Return the softmax over the last axis of (..., steps, steps), masked if causal."""
        xp = namespace(scores)
        if self.causal:
            place = device(scores)
            step = xp.arange(scores.shape[-1], device=place)
            never = xp.asarray(-math.inf, dtype=scores.dtype, device=place)
            scores = xp.where(step[:, None] >= step[None, :], scores, never)
        raised = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        return raised / xp.sum(raised, axis=-1, keepdims=True)


def _softmax_derivative(a: Array, t: Array) -> Array:
    """Return ``A (T - sum(A T))``, the derivative of ``a`` applied to a (co)tangent of scores."""
    t = a * t
    return t - a * namespace(a).sum(t, axis=-1, keepdims=True)
