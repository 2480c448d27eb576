"""Layers as people write them by hand: every convention that ``from_layers`` knows."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5


class Stored:
    """Nothing is returned: results are attributes."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.weights, self.biases = draw(seed, inputs, outputs), np.zeros((1, outputs))

    def forward(self, inputs: Any) -> None:
        self.inputs = inputs
        self.output = inputs @ self.weights + self.biases

    def backward(self, dvalues: Any) -> None:
        self.dweights = self.inputs.T @ dvalues
        self.dbiases = dvalues.sum(axis=0, keepdims=True)
        self.dinputs = dvalues @ self.weights.T


class Listed:
    """Parameters and gradients in lists, gradients written in place."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.params = [draw(seed, inputs, outputs), np.zeros(outputs)]
        self.grads = [np.zeros_like(p) for p in self.params]

    def forward(self, x: Any) -> Any:
        weight, bias = self.params
        self.x = x
        return x @ weight + bias

    def backward(self, dout: Any) -> Any:
        self.grads[0][...] = self.x.T @ dout
        self.grads[1][...] = dout.sum(axis=0)
        return dout @ self.params[0].T


class Mapped:
    """Parameters and gradients in mappings; the weight is (out, in)."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.params = {"W": draw(seed, inputs, outputs).T.copy(), "b": np.zeros(outputs)}
        self.grads: dict[str, Any] = {}

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.params["W"].T + self.params["b"]

    def backward(self, dy: Any) -> Any:
        self.grads = {"W": dy.T @ self.x, "b": dy.sum(axis=0)}
        return dy @ self.params["W"]


class Averaging:
    """The gradient is averaged here, not in the loss, and returned beside the cotangent."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.W, self.b = draw(seed, inputs, outputs), np.zeros(outputs)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy: Any) -> Any:
        self.dW, self.db = self.x.T @ dy / len(dy), dy.mean(axis=0)
        return dy @ self.W.T, self.dW, self.db


class NoGradient:
    """A weight and nothing else."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.kernel = draw(seed, inputs, outputs)

    def forward(self, x: Any) -> Any:
        return x @ self.kernel

    def backward(self, dy: Any) -> Any:
        return dy @ self.kernel.T


class Flattening(Stored):
    """Flattens its input sample by sample, and takes the gradient apart again."""

    def forward(self, inputs: Any) -> None:
        self.shape = inputs.shape
        super().forward(inputs.reshape(len(inputs), -1))

    def backward(self, dvalues: Any) -> None:
        super().backward(dvalues)
        self.dinputs = self.dinputs.reshape(self.shape)


class Columns:
    """Samples are columns: ``y = W x + b``."""

    def __init__(self, seed: int, inputs: int, outputs: int) -> None:
        self.W, self.b = draw(seed, inputs, outputs).T.copy(), np.zeros((outputs, 1))

    def forward(self, x: Any) -> Any:
        self.x = x
        return self.W @ x + self.b

    def backward(self, dy: Any) -> Any:
        self.dW, self.db = dy @ self.x.T, dy.sum(axis=1, keepdims=True)
        return self.W.T @ dy


class Tanh:
    def forward(self, x: Any) -> Any:
        self.out = np.tanh(x)
        return self.out

    def backward(self, dy: Any) -> Any:
        return dy * (1 - self.out**2)


class Scale:
    """A weight that is no matrix of a product."""

    def __init__(self, features: int) -> None:
        self.W = np.linspace(0.5, 1.5, features**2).reshape(features, features)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x * self.W[0]

    def backward(self, dy: Any) -> Any:
        self.dW = np.zeros_like(self.W)
        self.dW[0] = (dy * self.x).sum(axis=0)
        return dy * self.W[0]


class Dropout:
    """Draws from NumPy's global state and from a generator of its own."""

    def __init__(self, own: bool) -> None:
        self.rng = np.random.default_rng(5) if own else None

    def forward(self, x: Any) -> Any:
        u = np.random.random(x.shape) if self.rng is None else self.rng.random(x.shape)  # noqa: NPY002
        self.mask = u > 0.2
        return x * self.mask

    def backward(self, dy: Any) -> Any:
        return dy * self.mask


class InPlace:
    """ReLU that writes into its argument, forward and backward."""

    def forward(self, x: Any) -> Any:
        self.mask = x <= 0
        x[self.mask] = 0
        return x

    def backward(self, dy: Any) -> Any:
        dy[self.mask] = 0
        return dy


class Mean:
    """Half the mean squared error as an object."""

    def forward(self, outputs: Any, targets: Any) -> float:
        self.difference = outputs - targets
        return float(0.5 * np.mean(self.difference**2))

    def backward(self) -> Any:
        return self.difference / self.difference.size


def squared(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """The same as a function."""
    return 0.5 * np.mean((outputs - targets) ** 2), (outputs - targets) / outputs.size
