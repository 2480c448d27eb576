"""Three small networks with data, as graphs in any namespace, and torch's double backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_adapter.layer_reference import Place, block
from helpers.dense import null_projector
from numpy.typing import NDArray

from nullport_arrays import from_network
from nullport_arrays._network import NetworkGraph
from nullport_arrays.layers import (
    GELU,
    Conv2d,
    CrossEntropy,
    Dense,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    Loss,
    MaxPool2d,
    Mean,
    Position,
    Sequential,
    SquaredError,
    Tanh,
    Watch,
    flatten,
    unflatten,
)

Matrix = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """A network with a loss, parameters and a batch, in float64 on NumPy."""

    network: Layer
    loss: Loss
    x: Matrix
    y: Matrix

    def params(self) -> Any:
        flat = flatten(self.network.init(np.random.default_rng(0)))
        return unflatten({name: a.astype(np.float64) for name, a in flat.items()})

    def graph(self, place: Place, dtype: str = "float64", **options: Any) -> NetworkGraph:
        """Return the graph of it in some place."""
        params, (x, y) = place.put(self.params(), dtype), self.batch(place, dtype)
        return from_network(self.network, self.loss, params, (x, y), **options)

    def batch(self, place: Place, dtype: str = "float64", seed: int | None = None) -> Any:
        """Return the batch, or one of other samples."""
        x, y = self.x, self.y
        if seed is not None:
            rng = np.random.default_rng(seed)
            x, y = rng.permuted(x, axis=0), rng.permuted(y, axis=0)
        return place.put({"x": x, "y": y}, dtype).values()


def problems() -> dict[str, Problem]:
    """Return a perceptron, a CNN with groups and strides, and a transformer."""
    rng = np.random.default_rng(7)
    mlp = Sequential(Flatten(), Dense(12, 20), Tanh(), Dense(20, 18), GELU(), Dense(18, 3))
    cnn = Sequential(
        Conv2d(3, 16, 3, padding=1),
        GELU(),
        MaxPool2d(2),
        Conv2d(16, 12, 3, padding=1, groups=2),
        Tanh(),
        Conv2d(12, 8, 2, stride=2, bias=False),
        GELU(),
        Flatten(),
        Dense(8, 4),
    )
    transformer = Sequential(
        Embedding(9, 16),
        Position(5, 16),
        block(16, 4, GELU(), causal=True),
        block(16, 2, Tanh(), causal=False),
        LayerNorm(16),
        Mean(),
        Dense(16, 5),
    )
    return {
        "mlp": Problem(
            mlp, SquaredError(), rng.standard_normal((6, 3, 4)), rng.standard_normal((6, 3))
        ),
        "cnn": Problem(
            cnn, CrossEntropy(), rng.standard_normal((3, 5, 6, 3)), rng.integers(0, 4, 3)
        ),
        "transformer": Problem(
            transformer, CrossEntropy(), rng.integers(0, 9, (2, 5)), rng.integers(0, 5, 2)
        ),
    }


def oracle(problem: Problem) -> dict[str, Matrix]:
    """Return the projected gradient of half the squared gradient norm, by double backward.

    Only forward passes of the layers are used, under torch's autograd; the projector comes from a
    singular value decomposition of the rows that the linear layers were shown. Each direction is
    (groups..., out, in + 1), the bias as last column where there is one.
    """
    import torch

    flat = {name: torch.from_numpy(a) for name, a in flatten(problem.params()).items()}
    for tensor in flat.values():
        tensor.requires_grad_(True)
    rows: dict[str, Matrix] = {}
    linear: dict[str, Any] = {}

    def receive(path: str, layer: Any, x: Any) -> None:
        rows[path], linear[path] = layer.rows(x).detach().numpy(), layer

    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    outputs, _ = problem.network.forward(unflatten(flat), x, Watch(receive))
    value = problem.loss.value(outputs, y)
    gradients = torch.autograd.grad(value, list(flat.values()), create_graph=True)
    objective = sum((g**2).sum() for g in gradients) / 2
    second = dict(zip(flat, torch.autograd.grad(objective, list(flat.values())), strict=True))
    found = {}
    for path, layer in linear.items():
        matrix = layer.matrix(second[f"{path}.weight"]).numpy()
        x_rows = rows[path]
        if f"{path}.bias" in second:
            bias = second[f"{path}.bias"].numpy().reshape(*matrix.shape[:-1], 1)
            matrix = np.concatenate([matrix, bias], axis=-1)
            ones = np.ones((*x_rows.shape[:-1], 1))
            x_rows = np.concatenate([x_rows, ones], axis=-1)
        found[path] = matrix @ null_projector(x_rows)
    return found
