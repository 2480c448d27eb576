"""The three networks of ``nullport compare``, against those that torch makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import error

from nullport.lab.compare import Settings, Task
from nullport_arrays.lab import models
from nullport_arrays.layers import (
    Conv2d,
    CrossEntropy,
    Dense,
    SquaredError,
    flatten,
    unflatten,
    value_and_grad,
)

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from nullport_torch.lab.models import build  # noqa: E402

Flat = dict[str, Any]


def linear(flat: Flat, ours: str, theirs: Any) -> None:
    flat[f"{ours}.weight"], flat[f"{ours}.bias"] = theirs.weight, theirs.bias


def norm(flat: Flat, ours: str, theirs: Any) -> None:
    flat[f"{ours}.scale"], flat[f"{ours}.shift"] = theirs.weight, theirs.bias


def copied(model: Any, network: Any) -> Flat:
    """Name torch's parameters as ours, in our layout; differentiable by torch."""
    flat: Flat = {}
    if not isinstance(model, torch.nn.Sequential):
        return copied_transformer(model, network)
    theirs = [layer for layer in model if list(layer.parameters())]
    ours = [i for i, layer in enumerate(network.layers) if isinstance(layer, Dense | Conv2d)]
    for i, layer in zip(ours, theirs, strict=True):
        linear(flat, str(i), layer)
        if layer.weight.ndim == 4:
            flat[f"{i}.weight"], channels = layer.weight.movedim(1, -1), len(layer.weight)
        elif isinstance(network.layers[0], Conv2d):  # pixels come channels last here
            side = int((layer.in_features // channels) ** 0.5)
            weight = layer.weight.unflatten(1, (channels, side, side))
            flat[f"{i}.weight"] = weight.movedim(1, -1).flatten(1)
    return flat


def copied_transformer(model: Any, network: Any) -> Flat:
    flat: Flat = {}
    first = 0 if model.language else 1
    if model.language:
        flat["0.table"] = model.embed.weight
    else:
        linear(flat, "1", model.embed)
    flat[f"{first + 1}.table"] = model.position
    for b, block in enumerate(model.blocks, start=first + 2):
        norm(flat, f"{b}.0.0", block.norm1)
        for name, weight, bias in zip(
            ("query", "key", "value"),
            block.qkv.weight.chunk(3),
            block.qkv.bias.chunk(3),
            strict=True,
        ):
            flat[f"{b}.0.1.{name}.weight"], flat[f"{b}.0.1.{name}.bias"] = weight, bias
        linear(flat, f"{b}.0.1.out", block.project)
        norm(flat, f"{b}.1.0", block.norm2)
        linear(flat, f"{b}.1.1", block.grow)
        linear(flat, f"{b}.1.3", block.shrink)
    end = first + 2 + len(model.blocks)
    norm(flat, str(end), model.norm)
    linear(flat, str(len(network.layers) - 1), model.head)
    return flat


def make_task(kind: Any, shape: tuple[int, ...], outputs: int) -> Task:
    rng = np.random.default_rng(0)
    if kind == "language":
        x, y = rng.integers(0, outputs, (2, 4, *shape))
    else:
        x = rng.standard_normal((4, *shape))
        y = rng.integers(0, outputs, 4)
        y = y if kind == "classification" else rng.standard_normal((4, outputs))
    return Task("toy", kind, outputs, x, y, x, y)


@pytest.mark.parametrize(
    ("model", "kind", "shape", "outputs"),
    [
        ("mlp", "classification", (6, 6, 1), 3),
        ("mlp", "regression", (5,), 2),
        ("cnn", "classification", (9, 9, 3), 4),
        ("cnn", "regression", (4, 4, 1), 1),
        ("transformer", "language", (7,), 9),
        ("transformer", "classification", (6, 5, 2), 3),
        ("transformer", "regression", (8, 3), 2),
        ("transformer", "regression", (5,), 2),
    ],
)
def test_outputs_losses_and_gradients_are_those_of_torch(
    model: str, kind: str, shape: tuple[int, ...], outputs: int
) -> None:
    task = make_task(kind, shape, outputs)
    settings = Settings.make("digits", model=model, width=32, depth=2, activation="relu")
    network = models.build(task, settings)
    torch.manual_seed(0)
    twin = build(task, settings).double()
    theirs = copied(twin, network)
    flat = {name: value.detach().numpy() for name, value in theirs.items()}
    params = unflatten(flat)
    new = flatten(network.init(np.random.default_rng(0)))
    assert {name: a.shape for name, a in new.items()} == {name: a.shape for name, a in flat.items()}

    y = twin(torch.tensor(task.inputs))
    assert error(network.forward(params, task.inputs)[0], y.detach().numpy()) <= 1e-10
    targets = torch.tensor(task.targets)
    squared = kind == "regression"
    expected = F.mse_loss(y, targets) if squared else F.cross_entropy(y.movedim(-1, 1), targets)
    loss: Any = SquaredError() if squared else CrossEntropy()
    value, grads = value_and_grad(network, loss, params, task.inputs, task.targets)
    assert float(value) == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(expected, list(twin.parameters()))
    for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
        parameter.data = gradient
    named = copied(twin, network)  # the same names and layouts for gradients
    wanted = {name: named[name].detach().numpy() for name in flat}
    found = flatten(grads)
    assert found.keys() == wanted.keys()
    total = sum(float(np.sum(w**2)) for w in wanted.values()) ** 0.5
    for name, gradient in found.items():
        assert np.linalg.norm(gradient - wanted[name]) <= 1e-10 * total, name
