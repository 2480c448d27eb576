"""A tanh network with a hand-written backward pass as a ``LayerGraph``, in any array namespace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nullport._graph import Linearization, Move, Parameter, Receive, TangentUnavailable, Use
from nullport._layout import Layout, matrix
from nullport._site import DenseSite


class MLPGraph:
    """``y = W_k tanh(... tanh(W_1 x + b_1) ...) + b_k`` and half the mean squared error.

    Parameters alternate between weights (out, in) and biases (out,).
    """

    has_optimizer = False

    def __init__(
        self,
        xp: Any,
        sizes: Sequence[int],
        *,
        samples: int = 4,
        seed: int = 0,
        guard_samples: int = 0,
        dtype: str = "float64",
    ) -> None:
        generator = np.random.default_rng(seed)
        self.xp, self.dtype = xp, getattr(xp, dtype)

        def draw(*shape: int, scale: float = 1.0) -> Any:
            values = scale * generator.standard_normal(shape)
            return xp.astype(xp.asarray(values), self.dtype)

        self.values: list[Any] = []
        for inputs, outputs in itertools.pairwise(sizes):
            self.values += [draw(outputs, inputs, scale=inputs**-0.5), draw(outputs, scale=0.1)]
        names = [f"layer{i // 2}.{'bias' if i % 2 else 'weight'}" for i in range(len(self.values))]
        self.parameters = [Parameter(name) for name in names]
        self.batch = draw(samples, sizes[0]), draw(samples, sizes[-1])
        self.others = (
            (draw(guard_samples, sizes[0]), draw(guard_samples, sizes[-1]))
            if guard_samples
            else None
        )
        self.start = list(self.values)
        self.restored = self.released = 0
        self.settled: list[bool] = []

    def weights(self) -> list[Any]:
        return list(self.values)

    def read(self, parameter: int, array: Any, layout: Layout) -> Any:
        return array

    def _forward(self, values: Sequence[Any], x: Any) -> tuple[list[Any], Any]:
        inputs = []
        for k in range(0, len(values), 2):
            inputs.append(x)
            x = x @ self.xp.matrix_transpose(values[k]) + values[k + 1]
            if k + 2 < len(values):
                x = self.xp.tanh(x)
        return inputs, x

    def _evaluate(self, values: Sequence[Any], batch: tuple[Any, Any]) -> Any:
        _, out = self._forward(values, batch[0])
        return 0.5 * self.xp.mean((out - batch[1]) ** 2)

    def differentiate(self, values: Sequence[Any]) -> tuple[Any, list[Any], list[Any], list[Any]]:
        """Return loss, gradients, layer inputs and cotangents."""
        xp = self.xp
        inputs, out = self._forward(values, self.batch[0])
        delta = (out - self.batch[1]) / (out.shape[0] * out.shape[1])
        gradients: list[Any] = []
        cotangents: list[Any] = []
        for k in reversed(range(0, len(values), 2)):
            x = inputs[k // 2]
            gradients = [xp.matrix_transpose(delta) @ x, xp.sum(delta, axis=0), *gradients]
            cotangents = [delta, *cotangents]
            if k:
                delta = (delta @ values[k]) * (1 - x**2)
        return self._evaluate(values, self.batch), gradients, inputs, cotangents

    def linearize(self, *, unchanged: bool = False, again: bool = False) -> Linearization:
        loss, gradients, inputs, cotangents = self.differentiate(self.values)
        sites, uses = [], []
        for i, (x, delta) in enumerate(zip(inputs, cotangents, strict=True)):
            weight = self.values[2 * i]
            output = self.xp.linalg.vector_norm(x @ self.xp.matrix_transpose(weight))
            sites.append(DenseSite("dense", x, delta, output))
            uses += [
                Use(2 * i, i, "weight", matrix((), *weight.shape)),
                Use(2 * i + 1, i, "bias", matrix((), weight.shape[0], None)),
            ]
        return Linearization(loss, list(gradients), sites, uses)

    def gradient(self) -> tuple[Any, list[Any]]:
        loss, gradients, _, _ = self.differentiate(self.values)
        return loss, gradients

    def release(self) -> None:
        self.released += 1

    def replay(self, v: Sequence[Any], step: Any, receive: Receive) -> None:
        moved = [w if a is None else w + step * a for w, a in zip(self.values, v, strict=True)]
        for i, x in enumerate(self._forward(moved, self.batch[0])[0]):
            receive(i, x)

    def jvp(self, v: Sequence[Any], receive: Receive) -> None:
        msg = "this network was written by hand"
        raise TangentUnavailable(msg)

    def _shifted(self, shift: Sequence[Any] | None) -> list[Any]:
        if shift is None:
            return self.values
        return [w if s is None else w - s for w, s in zip(self.values, shift, strict=True)]

    def loss(self, shift: Sequence[Any] | None = None) -> Any:
        return self._evaluate(self._shifted(shift), self.batch)

    def guard(self, shift: Sequence[Any] | None = None) -> Any | None:
        return None if self.others is None else self._evaluate(self._shifted(shift), self.others)

    def optimizer_step(self, gradients: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def elsewhere(self, shift: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def move(self, moves: Sequence[Move]) -> None:
        for move in moves:
            change = move.right
            if move.left is not None:
                change = self.xp.matrix_transpose(move.left) @ move.right
            self.values[move.parameter] = self.values[move.parameter] + change

    def restore(self) -> None:
        self.restored += 1
        self.values = list(self.start)

    def settle(self, accepted: Any) -> None:
        self.settled.append(bool(accepted))
        if not accepted:
            self.restore()
