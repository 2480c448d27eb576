"""Layers made of layers.

Sequential   y = f_k(... f_1(x)):   pullback from the last to the first, pushforward as forward
Residual     y = x + f(x):          dx = dy + J^T dy,  dy = dx + J dx
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nullport.network import Array
from nullport_arrays.layers._base import SILENT, Layer, Params, Watch, plus, settle


@dataclass(frozen=True, init=False)
class Sequential(Layer):
    """One layer after the other.

    Its children are named ``"0"``, ``"1"``, ...; those without parameters have no key in the
    parameters.

    Attributes:
        layers: The layers, first to last.

    >>> from nullport_arrays.layers import Dense, ReLU, flatten
    >>> network = Sequential(Dense(3, 4), ReLU(), Dense(4, 2))
    >>> list(flatten(network.init(np.random.default_rng(0))))
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        """Take the layers, first to last.

        Raises:
            TypeError: If one is no layer, such as a list of layers.
        """
        for i, layer in enumerate(layers):
            check_layer(f"layer {i} of Sequential", layer)
        settle(self, layers=layers)

    def init(self, rng: np.random.Generator) -> Params:
        """Return the parameters of all layers that have some, by number."""
        made = {str(i): layer.init(rng) for i, layer in enumerate(self.layers)}
        return {name: params for name, params in made.items() if params}

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, list[Any]]:
        """Return the last layer's output; the cache is that of every layer."""
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer.forward(params.get(str(i), {}), x, watch[str(i)])
            caches.append(cache)
        return x, caches

    def pullback(
        self, params: Params, cache: list[Any], dy: Array, watch: Watch = SILENT
    ) -> tuple[Array | None, Params]:
        """Return the cotangents of the input and of the parameters of all layers."""
        grads: Params = {}
        cotangent: Array | None = dy
        for i in reversed(range(len(self.layers))):
            if cotangent is None:  # integers, which no parameter can have made
                break
            name = str(i)
            cotangent, grad = self.layers[i].pullback(
                params.get(name, {}), cache[i], cotangent, watch[name]
            )
            grads = {name: grad, **grads} if grad else grads
        return cotangent, grads

    def pushforward(
        self,
        params: Params,
        cache: list[Any],
        dx: Array | None,
        dparams: Params,
        watch: Watch = SILENT,
    ) -> Array | None:
        """Return the tangent of the last layer's output."""
        for i, layer in enumerate(self.layers):
            name = str(i)
            dx = layer.pushforward(
                params.get(name, {}), cache[i], dx, dparams.get(name) or {}, watch[name]
            )
        return dx


@dataclass(frozen=True)
class Residual(Layer):
    """Adds its input to the output of a layer, which must have the same shape.

    Parameters, names and paths are those of the layer itself.

    Attributes:
        inner: The layer.

    Raises:
        TypeError: If it is no layer.
    """

    inner: Layer

    def __post_init__(self) -> None:
        """Check that it is a layer."""
        check_layer("what is inside Residual", self.inner)

    def init(self, rng: np.random.Generator) -> Params:
        """Return the layer's parameters."""
        return self.inner.init(rng)

    def forward(self, params: Params, x: Array, watch: Watch = SILENT) -> tuple[Array, Any]:
        """Return the sum; the cache is the layer's.

        Raises:
            ValueError: If the layer's output has another shape than its input.
        """
        y, cache = self.inner.forward(params, x, watch)
        if y.shape != x.shape:
            msg = f"Residual got {tuple(y.shape)} for an input {tuple(x.shape)}; expected: the same"
            raise ValueError(msg)
        return x + y, cache

    def pullback(
        self, params: Params, cache: Any, dy: Array, watch: Watch = SILENT
    ) -> tuple[Array | None, Params]:
        """Return the cotangents of the input and of the layer's parameters."""
        dx, grads = self.inner.pullback(params, cache, dy, watch)
        return plus(dy, dx), grads

    def pushforward(
        self, params: Params, cache: Any, dx: Array | None, dparams: Params, watch: Watch = SILENT
    ) -> Array | None:
        """Return the tangent of the sum."""
        return plus(dx, self.inner.pushforward(params, cache, dx, dparams, watch))


def check_layer(what: str, layer: object) -> None:
    """Check that ``layer`` has a layer's methods.

    Raises:
        TypeError: If it does not.
    """
    if not callable(getattr(layer, "pushforward", None)) or isinstance(layer, type):
        msg = f"{what} is {layer!r}; allowed: a layer"
        raise TypeError(msg)
