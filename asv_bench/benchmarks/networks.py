"""The GELU MLP of the benchmarks on every backend, behind three methods.

    y = W_L gelu(... gelu(W_1 x + b_1) ...) + b_L,    W_l (width, width), the last (10, width)

with the cross-entropy of random labels on random inputs. Weights are torch's default, the same
numbers everywhere. Every method waits for its device.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from .common import Size
from .places import jax, optional, place, torch

CLASSES = 10
SMALL = 1e-3
"""Radius of the teleports that are timed: however many, weights stay about where they are."""

nullport = optional("nullport")
nullport_torch, nullport_jax = optional("nullport_torch"), optional("nullport_jax")
nullport_arrays, layers = (
    optional("nullport_arrays" + part) or optional("nullport_cupy" + part)
    for part in ("", ".layers")
)  # by its first name in older commits


class Network(Protocol):
    """A network and its batch."""

    def gradient(self) -> None:
        """Compute one training gradient."""

    def teleport(self, steps: int = 1, radius: float = SMALL) -> Any:
        """Teleport, and return the report."""


@cache
def network(backend: str, size: Size, dtype: str = "float32") -> Network:
    """Return the network, which is made once per process: asv sets up before every sample."""
    kinds = {"torch": TorchNetwork, "jax": JaxNetwork}
    return kinds.get(backend.partition(":")[0], ArrayNetwork)(backend, size, dtype)


def numbers(size: Size, dtype: str) -> tuple[list, np.ndarray, np.ndarray]:
    """Return weights (out, in) with their biases, inputs and labels."""
    draw = np.random.default_rng(0)
    weights = []
    for fan_in, fan_out in pairwise([*[size.width] * (size.depth + 1), CLASSES]):
        shapes = (fan_out, fan_in), (fan_out,)
        pair = [draw.uniform(-1, 1, shape) / fan_in**0.5 for shape in shapes]
        weights.append([a.astype(dtype) for a in pair])
    x = draw.standard_normal((size.samples, size.width)).astype(dtype)
    return weights, x, draw.integers(0, CLASSES, size.samples)


def config(steps: int, radius: float) -> Any:
    """Return the settings of a teleport by the paper's objective, in its null space."""
    return nullport.TeleportConfig(objective="grad_norm", steps=steps, radius=radius)


class TorchNetwork:
    """In eager mode; its weights move in place."""

    def __init__(self, backend: str, size: Size, dtype: str) -> None:
        self.place = place(backend)
        weights, x, y = numbers(size, dtype)
        self.x, self.y = self.place.put(x), self.place.put(y)
        parts: list[Any] = []
        for w, b in weights:
            linear = torch.nn.Linear(1, 1)
            linear.weight, linear.bias = (torch.nn.Parameter(self.place.put(a)) for a in (w, b))
            parts += [linear, torch.nn.GELU()]
        self.model = torch.nn.Sequential(*parts[:-1])

    def loss(self) -> Any:
        return torch.nn.functional.cross_entropy(self.model(self.x), self.y)

    def gradient(self) -> None:
        self.place.wait(torch.autograd.grad(self.loss(), list(self.model.parameters())))

    def teleport(self, steps: int = 1, radius: float = SMALL) -> Any:
        report = nullport_torch.teleport(self.model, self.loss, config=config(steps, radius))
        self.place.wait(report)
        return report


class JaxNetwork:
    """Jitted as a whole; a function of its weights, which stay."""

    def __init__(self, backend: str, size: Size, dtype: str) -> None:
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.place = place(backend)
        weights, x, y = numbers(size, dtype)
        self.params = jax.tree.map(self.place.put, weights)
        self.batch = self.place.put(x), self.place.put(y)
        self.jumps: dict[tuple[int, float], Any] = {}
        self.value_and_grad = jax.jit(jax.value_and_grad(self.loss))

    @staticmethod
    def loss(params: Any, x: Any, y: Any) -> Any:
        for w, b in params[:-1]:
            x = jax.nn.gelu(x @ w.T + b, approximate=False)
        logits = jax.nn.log_softmax(x @ params[-1][0].T + params[-1][1])
        return -jax.numpy.mean(jax.numpy.take_along_axis(logits, y[:, None], 1))

    def gradient(self) -> None:
        self.place.wait(self.value_and_grad(self.params, *self.batch))

    def teleport(self, steps: int = 1, radius: float = SMALL) -> Any:
        if (steps, radius) not in self.jumps:
            settings = config(steps, radius)
            self.jumps[steps, radius] = jax.jit(
                lambda params, *batch: nullport_jax.teleport(
                    self.loss, params, *batch, config=settings
                )
            )
        moved, report = self.jumps[steps, radius](self.params, *self.batch)
        self.place.wait(moved)
        return report


class ArrayNetwork:
    """On nullport's own layers, with NumPy's or CuPy's arrays; its weights stay."""

    def __init__(self, backend: str, size: Size, dtype: str) -> None:
        self.place = place(backend)
        weights, x, y = numbers(size, dtype)
        self.batch = self.place.put(x), self.place.put(y)
        parts: list[Any] = []
        self.params: dict[str, Any] = {}
        for w, b in weights:
            values = {"weight": self.place.put(w), "bias": self.place.put(b)}
            self.params[str(len(parts))] = values
            parts += [layers.Dense(w.shape[1], w.shape[0]), layers.GELU()]
        self.network, self.loss = layers.Sequential(*parts[:-1]), layers.CrossEntropy()

    def gradient(self) -> None:
        self.place.wait(layers.value_and_grad(self.network, self.loss, self.params, *self.batch))

    def teleport(self, steps: int = 1, radius: float = SMALL) -> Any:
        graph = nullport_arrays.from_network(self.network, self.loss, self.params, self.batch)
        report = nullport_arrays.teleport(graph, config(steps, radius))
        self.place.wait(report)
        return report
