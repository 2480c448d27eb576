"""What a layer is: a pure function of parameters and an input, with its two linearisations.

A layer ``y = f(p, x)`` holds hyper-parameters only; its parameters ``p`` are a nested dict of
arrays that is passed in, and nothing is ever changed in place. With ``J_x`` and ``J_p`` the
derivatives of ``f`` at the last forward pass, whose intermediate results are the *cache*:

    forward      y = f(p, x)
    pullback     dx = J_x^T dy,  dp = J_p^T dy      (reverse mode, from the cotangent of y)
    pushforward  dy = J_x dx + J_p dp               (forward mode, from the tangents of x and p)

A parameter ``w`` of the child ``c`` of a network is ``params["c"]["w"]``; its name in
:func:`~nullport_arrays.layers.flatten` is ``c.w``, and the path that a :class:`Watch` is at there
is ``c``. A layer without parameters has no key at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from nullport.network import Array, LowRank, namespace

Params: TypeAlias = dict[str, Any]
"""Arrays by name, in nested dicts."""


class Watch:
    """Is shown what passes through linear maps.

    That is inputs in the forward pass, cotangents of outputs in the pullback, and tangents of
    inputs in the pushforward; and, for who asks, the products that the forward pass makes. It knows
    where in the network it is.

    A dense layer may also ask it whether the gradient of its weight should stay in factors
    (:attr:`factored`).
    """

    def __init__(
        self,
        receive: Callable[[str, Linear, Array], None] | None = None,
        path: str = "",
        products: Callable[[str, Linear, Array], None] | None = None,
        factored: Collection[str] = (),
    ) -> None:
        """Stand at ``path``.

        Args:
            receive: Told the path, the linear layer and the array.
            path: Where in the network it is.
            products: The same for ``X W^T``, without the bias.
            factored: Dotted names of the weights whose gradients should be ``LowRank(dY, X)``.
        """
        self._receive, self.path, self._products = receive, path, products
        self._factored = factored

    def __getitem__(self, name: str) -> Watch:
        """Return the watch over the child ``name``: at ``path.name``, or ``name`` at the root."""
        if self._receive is None:
            return self
        path = f"{self.path}.{name}" if self.path else name
        return Watch(self._receive, path, self._products, self._factored)

    def __call__(self, layer: Linear, array: Array) -> None:
        """Show an array that passes through ``layer``."""
        if self._receive is not None:
            self._receive(self.path, layer, array)

    def product(self, layer: Linear, array: Array) -> None:
        """Show a product that ``layer`` has made."""
        if self._products is not None:
            self._products(self.path, layer, array)

    @property
    def factored(self) -> bool:
        """Whether the gradient of the weight here should stay in factors."""
        return (f"{self.path}.weight" if self.path else "weight") in self._factored


@dataclass(frozen=True)
class Shifted:
    """A weight moved by a low-rank matrix, in the place of an array among the parameters.

    Attributes:
        weight: Shape (out, in).
        move: What is added to it, never formed.
    """

    weight: Array
    move: LowRank

    def product(self, rows: Array) -> Array:
        """Return ``rows (weight + move)^T``, shape (samples, out), for ``rows`` (samples, in)."""
        product = rows @ namespace(rows).matrix_transpose(self.weight)
        product += self.move.outputs(rows)
        return product


SILENT = Watch()
"""Tells nobody."""


class Layer(Protocol):
    """A pure function with parameters, and its two linearisations."""

    def init(self, rng: np.random.Generator) -> Params:
        """Return new parameters, float32 NumPy arrays in nested dicts; empty if there are none."""

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the output, and a cache for the two methods below.

        Raises:
            ValueError: If ``x`` does not have the shape that the layer takes.
        """

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array | None, Params]:
        """Return the cotangents of input and parameters.

        Args:
            params: The parameters of the forward pass.
            cache: What the forward pass returned.
            dy: Cotangent of the output.
            watch: Is shown the cotangents of the outputs of linear maps.

        Returns:
            Cotangent of the input, None if that is integers, and gradients shaped like ``params``;
            that of a weight may be low-rank if ``watch`` says so.
        """

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the output.

        Args:
            params: The parameters of the forward pass.
            cache: What the forward pass returned.
            dx: Tangent of the input; None is zero.
            dparams: Tangents of the parameters, shaped like them; None or nothing is zero.
            watch: Is shown the tangents of the inputs of linear maps, except where they are None.

        Returns:
            An array of the output's shape, or None, which is zero, if no tangent reached it.
        """


class Linear(Layer, Protocol):
    """A layer ``Y = X W^T + b`` on rows ``X`` that it makes of its input.

    Its parameters are ``weight`` and, unless it has none, ``bias``.
    """

    @property
    def kind(self) -> str:
        """``"dense"`` or ``"conv2d"``."""

    def rows(self, x: Array) -> Array:
        """Return ``X``, shape (..., samples, in), leading axes for groups; ``x`` may be a tangent.

        The rows of ``x[a:b]`` are those of ``x`` that belong to these samples.
        """

    def cotangent_rows(self, dy: Array) -> Array:
        """Return the cotangent of ``Y``, shape (..., samples, out), so that ``dW = dY^T X``."""

    def matrix(self, weight: Array) -> Array:
        """Return the weight, or an array shaped like it, as ``W``: (..., out, in), a reshape."""


def settle(layer: object, **values: Any) -> None:
    """Set the fields of a frozen dataclass that has an ``__init__`` of its own."""
    for name, value in values.items():
        object.__setattr__(layer, name, value)


class Parameterless:
    """Base of the layers without parameters."""

    def init(self, rng: np.random.Generator) -> Params:  # noqa: ARG002 - a layer's signature
        """Return no parameters."""
        return {}


def plus(a: Array | None, b: Array | None) -> Array | None:
    """Return the sum of two tangents or cotangents of which None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def flat(x: Array) -> Array:
    """Flatten all axes but the last: (..., features) -> (samples, features)."""
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
