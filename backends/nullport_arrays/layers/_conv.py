"""A convolution of images, features last, as a linear map on patches.

With ``X`` (groups, samples, kh kw cin/groups) the patches of the input, one row per output
position, ``W`` (groups, out/groups, kh kw cin/groups) and ``b`` (out,):

    forward      Y = X W^T + b
    pullback     dX = dY W, folded back into the image;  dW = dY^T X;  db = the sum of dY
    pushforward  dY = dX W^T + X dW^T + db

The leading axis is left out where there is one group. Patches are kh kw times as large as the
input, so only that is kept, and they are made anew in each pass, for a few samples at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import ClassVar

import numpy as np
from array_api_compat import is_numpy_array

from nullport.network import Array, namespace
from nullport_arrays.layers import _checks
from nullport_arrays.layers._base import SILENT, Linear, Params, Watch, flat, plus, settle
from nullport_arrays.layers._init import Init, affine, check_init
from nullport_arrays.layers._unfold import Window, Windows, fold, unfold

Pair = tuple[int, int]

CHUNK, CACHED = 1 << 24, 1 << 20
"""Largest number of patch elements made at a time, unless one sample has more; that of NumPy.

A CPU is up to 1.7 times as fast with patches that fit in its cache; a GPU wants large products.
"""


@dataclass(frozen=True, init=False)
class Conv2d(Linear):
    """A convolution: (n, height, width, inputs) -> (n, out height, out width, outputs).

    Attributes:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Size of the kernel, in height and width like the three below.
        stride: Distance of two patches.
        padding: Zeros added at either side.
        dilation: Distance of two pixels of a patch.
        groups: Number of parts of the channels that see nothing of each other.
        bias: Whether ``bias`` (outputs,) is added.
        scheme: How ``weight`` (outputs, kh, kw, inputs / groups) and bias start.

    >>> layer = Conv2d(3, 8, 3, stride=2, padding=1)
    >>> params = layer.init(np.random.default_rng(0))
    >>> layer.forward(params, np.ones((2, 9, 6, 3), np.float32))[0].shape
    (2, 5, 3, 8)
    """

    kind: ClassVar[str] = "conv2d"
    inputs: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: bool
    scheme: Init

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = "default",
    ) -> None:
        """Choose geometry and initialisation; an integer stands for both axes.

        Raises:
            ValueError: If a size is no positive integer (no natural number for the padding), the
                groups do not divide both channels, or the initialisation is unknown.
        """
        _checks.divides("groups", groups, inputs=inputs, outputs=outputs)
        check_init(init)
        geometry = {
            "kernel": _checks.pair(1, "kernel", kernel),
            "stride": _checks.pair(1, "stride", stride),
            "padding": _checks.pair(0, "padding", padding),
            "dilation": _checks.pair(1, "dilation", dilation),
        }
        settle(self, inputs=inputs, outputs=outputs, groups=groups, bias=bias, scheme=init)
        settle(self, **geometry)

    @cached_property
    def windows(self) -> Windows:
        """How the kernel moves along height and width."""
        along = zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (Window(*axis) for axis in along)
        return height, width

    def init(self, rng: np.random.Generator) -> Params:
        """Return ``weight`` (outputs, kh, kw, inputs / groups) and ``bias`` (outputs,)."""
        shape = (self.outputs, *self.kernel, self.inputs // self.groups)
        return affine(rng, shape, fan=math.prod(shape[1:]), bias=self.bias, init=self.scheme)

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Array]:
        """Return the output (n, oh, ow, outputs), and the input as the cache.

        Raises:
            ValueError: If ``x`` is not (n, height, width, inputs) or smaller than the kernel.
        """
        _checks.image("Conv2d", x, self.inputs)
        if 0 in self._size(x):
            least = [max(1, w.reach + 1 - 2 * w.padding) for w in self.windows]
            _checks.shape("Conv2d", x, f"height and width of at least {least[0]} and {least[1]}")
        watch(self, x)
        y = self._product(x, params["weight"])
        watch.product(self, y)
        return plus(y, params.get("bias")), x

    def pullback(
        self, params: Params, cache: Array, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array, Params]:
        """Return the cotangents of the input, shaped like it, of weight and bias."""
        watch(self, dy)
        xp, weight = namespace(dy), params["weight"]
        pulled = [self._pull(cache[few, ...], dy[few, ...], weight) for few in self._few(cache)]
        gradient = reduce(add, (gradient for _, gradient in pulled))
        grads = {"weight": xp.reshape(gradient, weight.shape)}
        if self.bias:
            grads["bias"] = xp.sum(flat(dy), axis=0)
        return _joined([dx for dx, _ in pulled]), grads

    def pushforward(
        self, params: Params, cache: Array, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output."""
        dy, dweight, dbias = None, dparams.get("weight"), dparams.get("bias")
        if dx is not None:
            watch(self, dx)
            dy = self._product(dx, params["weight"])
        if dweight is not None:
            dy = plus(dy, self._product(cache, dweight))
        if dy is None and dbias is not None:
            shape = (cache.shape[0], *self._size(cache), self.outputs)
            return namespace(dbias).broadcast_to(dbias, shape)
        return plus(dy, dbias)

    def rows(self, x: Array) -> Array:
        """Return the patches: (n oh ow, kh kw inputs), with groups (groups, n oh ow, ...)."""
        if self.groups > 1:
            split = (self.groups, self.inputs // self.groups)
            x = namespace(x).reshape(x, (*x.shape[:3], *split))
        return self._stacked(unfold(x, self.windows))

    def cotangent_rows(self, dy: Array) -> Array:
        """Return ``dy`` as (n oh ow, outputs), or (groups, n oh ow, outputs / groups)."""
        return self._stacked(dy)

    def matrix(self, weight: Array) -> Array:
        """Return (outputs, kh kw inputs), or (groups, outputs / groups, kh kw inputs / groups)."""
        shape = (self.outputs // self.groups, math.prod(weight.shape[1:]))
        stack = () if self.groups == 1 else (self.groups,)
        return namespace(weight).reshape(weight, (*stack, *shape))

    def _size(self, x: Array) -> Pair:
        height, width = (w.positions(n) for w, n in zip(self.windows, x.shape[1:3], strict=True))
        return height, width

    def _few(self, x: Array) -> list[slice]:
        """Part the samples so that the patches of each part are not too many."""
        each = math.prod(self._size(x)) * math.prod(self.kernel) * self.inputs
        n, some = x.shape[0], max(1, (CACHED if is_numpy_array(x) else CHUNK) // each)
        return [slice(i, min(i + some, n)) for i in range(0, max(n, 1), some)]

    def _product(self, x: Array, weight: Array) -> Array:
        """Return the convolution of ``x`` with ``weight``, without bias."""
        matrix = namespace(x).matrix_transpose(self.matrix(weight))
        size = self._size(x)

        def part(x: Array) -> Array:
            y = self._side_by_side(self.rows(x) @ matrix, (x.shape[0], *size))
            return namespace(x).reshape(y, (*y.shape[:3], self.outputs))

        return _joined([part(x[few, ...]) for few in self._few(x)])

    def _pull(self, x: Array, dy: Array, weight: Array) -> tuple[Array, Array]:
        """Return the cotangents of ``x`` and of the weight as matrices, for a few samples."""
        xp, rows = namespace(dy), self.cotangent_rows(dy)
        gradient = xp.matrix_transpose(rows) @ self.rows(x)
        patches = self._side_by_side(rows @ self.matrix(weight), dy.shape[:3])
        return xp.reshape(fold(patches, self.windows, x.shape[1:3]), x.shape), gradient

    def _stacked(self, y: Array) -> Array:
        """Turn (n, oh, ow, ...), the groups side by side, into rows, stacked by group."""
        xp, rows = namespace(y), math.prod(y.shape[:3])
        if self.groups == 1:
            return xp.reshape(y, (rows, math.prod(y.shape[3:])))
        parted = xp.reshape(y, (rows, self.groups, math.prod(y.shape[3:]) // self.groups))
        return xp.permute_dims(parted, (1, 0, 2))

    def _side_by_side(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """Undo :meth:`_stacked`: (n, oh, ow, features), or (n, oh, ow, groups, features)."""
        xp = namespace(rows)
        if self.groups == 1:
            return xp.reshape(rows, (*shape, rows.shape[-1]))
        return xp.reshape(xp.permute_dims(rows, (1, 0, 2)), (*shape, self.groups, rows.shape[-1]))


def _joined(parts: list[Array]) -> Array:
    """Put parts of the samples together."""
    return parts[0] if len(parts) == 1 else namespace(parts[0]).concat(parts, axis=0)
