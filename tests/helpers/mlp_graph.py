"""A tanh network with a hand-written backward pass as a ``FunctionalGraph``, in any namespace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from helpers.dense import to_numpy

from nullport.network import (
    Change,
    DenseSite,
    FunctionalGraph,
    LayerGraph,
    Linearization,
    Parameter,
    Receive,
    Use,
    Vector,
    dense,
    matrix,
    norm,
    widen,
)


class MLPGraph(FunctionalGraph):
    """``y = W_k h(... h(W_1 x + b_1) ...) + b_k`` and half the mean squared error.

    Parameters alternate between weights (out, in) and biases (out,). With ``rate`` there is an
    optimizer, plain gradient descent with weight decay; guard and other samples are on request.
    ``units`` is the unit of every layer's input, ``h(z) = units * tanh(z / units)``, and ``price``
    that of the loss: neither changes what is computed otherwise. ``reuse`` keeps activations.
    """

    def __init__(
        self,
        xp: Any,
        sizes: Sequence[int],
        *,
        samples: int = 4,
        seed: int = 0,
        guard_samples: int = 0,
        other_samples: int = 0,
        rate: float | None = None,
        decay: float = 0.0,
        dtype: str = "float64",
        units: float = 1.0,
        price: float = 1.0,
        reuse: bool = False,
    ) -> None:
        generator = np.random.default_rng(seed)
        self.xp, self.dtype = xp, getattr(xp, dtype)
        self.rate, self.decay, self.reuse = rate, decay, reuse
        self.units, self.price = units, price

        def draw(*shape: int, scale: float = 1.0) -> Any:
            values = scale * generator.standard_normal(shape)
            return xp.astype(xp.asarray(values), self.dtype)

        values: list[Any] = []
        bias = 0.1 * units if units <= 1 else 0.0  # else next to it a weight would be rounding
        for inputs, outputs in itertools.pairwise(sizes):
            values += [draw(outputs, inputs, scale=inputs**-0.5), draw(outputs, scale=bias)]
        names = [f"layer{i // 2}.{'bias' if i % 2 else 'weight'}" for i in range(len(values))]
        super().__init__(values, [Parameter(name) for name in names])
        self.data = {"batch": (draw(samples, sizes[0], scale=units), draw(samples, sizes[-1]))}
        for name, count in (("guard", guard_samples), ("others", other_samples)):
            if count:
                self.data[name] = draw(count, sizes[0], scale=units), draw(count, sizes[-1])
        self.batches = frozenset({*self.data} - {"batch"})
        self.has_optimizer = rate is not None
        self.kept: list[float] = []
        self.counts = dict.fromkeys(("linearize", "replay", "gradient", "loss", "release"), 0)

    @property
    def values(self) -> list[Any]:
        return self.weights()

    @property
    def start(self) -> list[Any]:
        return list(self._start)

    def forward(self, values: Sequence[Any], x: Any) -> tuple[list[Any], Any]:
        inputs = []
        for k in range(0, len(values), 2):
            inputs.append(x)
            x = x @ self.xp.matrix_transpose(values[k]) + values[k + 1]
            if k + 2 < len(values):
                x = self.units * self.xp.tanh(x / self.units)
        return inputs, x / self.units

    def inputs(self, weights: Sequence[Any]) -> list[Any]:
        self.counts["replay"] += 1
        return self.forward(weights, self.data["batch"][0])[0]

    def evaluate(self, weights: Sequence[Any], batch: str) -> Any:
        self.counts["loss"] += 1
        return self.loss_at(weights, batch)

    def loss_at(self, values: Sequence[Any], batch: str = "batch") -> Any:
        """Return the loss without counting it."""
        x, y = self.data[batch]
        return self.price * 0.5 * self.xp.mean((self.forward(values, x)[1] - y) ** 2)

    def differentiate(
        self, values: Sequence[Any], batch: str = "batch"
    ) -> tuple[Any, list[Any], list[Any], list[Any]]:
        """Return loss, gradients, layer inputs and cotangents."""
        xp, (x, y) = self.xp, self.data[batch]
        inputs, out = self.forward(values, x)
        delta = self.price * (out - y) / (out.shape[0] * out.shape[1]) / self.units
        gradients: list[Any] = []
        cotangents: list[Any] = []
        for k in reversed(range(0, len(values), 2)):
            x = inputs[k // 2]
            gradients = [xp.matrix_transpose(delta) @ x, xp.sum(delta, axis=0), *gradients]
            cotangents = [delta, *cotangents]
            if k:
                delta = (delta @ values[k]) * (1 - (x / self.units) ** 2)
        return self.price * 0.5 * xp.mean((out - y) ** 2), gradients, inputs, cotangents

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, checked: bool = False
    ) -> Linearization:
        self.counts["linearize"] += 1
        values = self.values
        loss, gradients, inputs, cotangents = self.differentiate(values)
        sites, uses = [], []
        for i, (x, delta) in enumerate(zip(inputs, cotangents, strict=True)):
            weight = values[2 * i]
            output = norm(widen(x) @ self.xp.matrix_transpose(widen(weight)))
            sites.append(DenseSite("dense", x, delta, output))
            uses += [
                Use(2 * i, i, "weight", matrix((), *weight.shape)),
                Use(2 * i + 1, i, "bias", matrix((), weight.shape[0], None)),
            ]
        return Linearization(loss, list(gradients), sites, uses, reused=self.reuse and unchanged)

    def gradient(self, batch: str = "batch", shift: Vector | None = None) -> tuple[Any, list[Any]]:
        self.counts["gradient"] += 1
        return self.differentiate(self.at(shift), batch)[:2]

    def optimizer_step(self, gradients: Vector) -> list[Any]:
        if self.rate is None:
            return list(super().optimizer_step(gradients))
        return [
            None if g is None else self.rate * (dense(g) + self.decay * w)
            for g, w in zip(gradients, self.values, strict=True)
        ]

    def exact(self) -> Any:
        return np.errstate(all="ignore")

    def release(self) -> None:
        self.counts["release"] += 1

    def move(self, changes: Any) -> None:
        made: list[Change] = list(changes)
        super().move(made)

    def keep(self, share: Any) -> None:
        self.kept.append(float(share))
        super().keep(share)


class ForwardMLPGraph(MLPGraph):
    """The same with forward-mode differentiation, written by hand too."""

    def jvp(self, v: Vector, receive: Receive) -> None:
        xp, values, (x, _) = self.xp, self.values, self.data["batch"]
        inputs = self.forward(values, x)[0]
        tangent = xp.zeros_like(x)
        for k in range(0, len(values), 2):
            x = inputs[k // 2]
            receive(k // 2, tangent)
            if k + 2 == len(values):
                return
            made = tangent @ xp.matrix_transpose(values[k])
            for part in (v[k], v[k + 1]):
                if part is not None:
                    made = made + (x @ xp.matrix_transpose(part) if part.ndim == 2 else part)
            tangent = made * (1 - (inputs[k // 2 + 1] / self.units) ** 2)


def flat(arrays: Sequence[Any]) -> Any:
    """Return arrays of any namespace as one NumPy vector of float64."""
    return np.concatenate([to_numpy(a).astype(np.float64).reshape(-1) for a in arrays])


def numbers(arrays: Sequence[Any]) -> list[Any]:
    """Return copies of arrays of any namespace as NumPy arrays."""
    return [to_numpy(a).copy() for a in arrays]


def unmoved(graph: LayerGraph, before: Sequence[Any]) -> bool:
    """Tell whether the weights are bit for bit those that were copied by :func:`numbers`."""
    pairs = zip(numbers(graph.weights()), before, strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def gradient_of(function: Any, values: Sequence[Any], step: float = 1e-6) -> list[Any]:
    """Return the gradient of a function of NumPy arrays by central differences, one by one."""
    found = []
    for k, w in enumerate(values):
        made = np.zeros_like(w)
        for index in np.ndindex(w.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = [a.copy() for a in values]
                moved[k][index] += sign * step
                ends.append(float(function(moved)))
            made[index] = (ends[0] - ends[1]) / (2 * step)
        found.append(made)
    return found


def along(function: Any, values: Sequence[Any], v: Sequence[Any], step: float) -> list[Any]:
    """Return the derivative of a list of NumPy arrays along ``v``, by a central difference."""
    ends = [
        function([w + sign * step * a for w, a in zip(values, v, strict=True)])
        for sign in (1.0, -1.0)
    ]
    return [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
