"""A fully connected layer, on the last axis of its input.

With ``X`` (samples, in) the input with its leading axes flattened, ``W`` (out, in), ``b`` (out,):

    forward      Y = X W^T + b
    pullback     dX = dY W,  dW = dY^T X,  db = the sum of dY over samples
    pushforward  dY = dX W^T + X dW^T + db
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nullport.network import Array, LowRank, namespace
from nullport_arrays.layers._base import SILENT, Linear, Params, Shifted, Watch, flat, plus, settle
from nullport_arrays.layers._checks import at_least, features
from nullport_arrays.layers._init import Init, affine, check_init


@dataclass(frozen=True, init=False)
class Dense(Linear):
    """A fully connected layer: (..., inputs) -> (..., outputs).

    Attributes:
        inputs: Size of the last axis of the input.
        outputs: Size of the last axis of the output.
        bias: Whether ``bias`` (outputs,) is added.
        scheme: How ``weight`` (outputs, inputs) and bias start.

    >>> layer = Dense(3, 2)
    >>> params = layer.init(np.random.default_rng(0))
    >>> layer.forward(params, np.ones((5, 3), np.float32))[0].shape
    (5, 2)
    """

    kind: ClassVar[str] = "dense"
    inputs: int
    outputs: int
    bias: bool
    scheme: Init

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, init: Init = "default"
    ) -> None:
        """Choose sizes and initialisation, ``"default"`` or ``"he"``.

        Raises:
            ValueError: If a size is no positive integer or the initialisation is unknown.
        """
        at_least(1, inputs=inputs, outputs=outputs)
        check_init(init)
        settle(self, inputs=inputs, outputs=outputs, bias=bias, scheme=init)

    def init(self, rng: np.random.Generator) -> Params:
        """Return ``weight`` (outputs, inputs) and ``bias`` (outputs,)."""
        shape = (self.outputs, self.inputs)
        return affine(rng, shape, fan=self.inputs, bias=self.bias, init=self.scheme)

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Array]:
        """Return the output (..., outputs), and the input as the cache."""
        features("Dense", x, self.inputs)
        watch(self, x)
        y = self._product(x, params["weight"])
        watch.product(self, y)
        return plus(y, params.get("bias")), x

    def pullback(
        self, params: Params, cache: Array, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangents of the input (..., inputs), of weight and bias."""
        watch(self, dy)
        xp, rows = namespace(dy), self.cotangent_rows(dy)
        gradient = LowRank(rows, self.rows(cache))
        grads: Params = {"weight": gradient if watch.factored else gradient.dense()}
        if self.bias:
            grads["bias"] = xp.sum(rows, axis=0)
        return xp.reshape(rows @ params["weight"], cache.shape), grads

    def pushforward(
        self, params: Params, cache: Array, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output (..., outputs)."""
        dy, dweight, dbias = None, dparams.get("weight"), dparams.get("bias")
        if dx is not None:
            watch(self, dx)
            dy = self._product(dx, params["weight"])
        if dweight is not None:
            dy = plus(dy, self._product(cache, dweight))
        if dy is None and dbias is not None:
            return namespace(dbias).broadcast_to(dbias, (*cache.shape[:-1], self.outputs))
        return plus(dy, dbias)

    def rows(self, x: Array) -> Array:
        """Return the input, or its tangent, as (samples, inputs)."""
        return flat(x)

    def cotangent_rows(self, dy: Array) -> Array:
        """Return the output's cotangent as (samples, outputs)."""
        return flat(dy)

    def matrix(self, weight: Array) -> Array:
        """Return the weight, which is (outputs, inputs) already."""
        return weight

    def _product(self, x: Array, weight: Array | Shifted) -> Array:
        """Return ``x weight^T`` on the last axis; one product of matrices, not one per sample."""
        xp, rows = namespace(x), self.rows(x)
        shifted = isinstance(weight, Shifted)
        y = weight.product(rows) if shifted else rows @ xp.matrix_transpose(weight)
        return xp.reshape(y, (*x.shape[:-1], self.outputs))
