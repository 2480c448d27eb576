"""Initialisations of the torch networks: what a user could choose instead of a teleport.

    he          entries of variance 2 / in                     (He et al., 2015)
    xavier      entries of variance 2 / (in + out)             (Glorot and Bengio, 2010)
    orthogonal  orthonormal rows or columns, times the gain    (Saxe et al., 2014)
    lsuv        orthonormal, then each layer divided by the standard deviation of its outputs on a
                batch, in the order of the forward pass        (Mishkin and Matas, 2016)

The gain is the square root of 2 for ReLU and its kind, 1 for tanh and sigmoid. Biases are zero. A
weight is a matrix (out, in), that of a convolution one of patches; a recurrent layer has two, each
with the gates below each other, which ``lsuv`` leaves orthonormal. Embeddings, positions and
normalisations stay as the framework has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nullport.lab.compare import Settings, Task

SAMPLES = 256
"""Training samples in the batch that unit variance is measured on."""

RECTIFIERS = ("relu", "gelu", "leaky_relu")
"""Activations that halve the second moment, or nearly."""


def initialise(model: nn.Module, task: Task, settings: Settings) -> None:
    """Initialise linear maps and convolutions as the settings say; nothing for ``"default"``."""
    if settings.init == "default":
        return
    gain = 2**0.5 if settings.activation in RECTIFIERS else 1.0
    rules: dict[str, Callable[[Tensor], Any]] = {
        "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
        "xavier": nn.init.xavier_normal_,
        "orthogonal": partial(nn.init.orthogonal_, gain=gain),
        "lsuv": nn.init.orthogonal_,
    }
    for layer in linear_maps(model):
        rules[settings.init](layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for recurrent in (m for m in model.modules() if isinstance(m, nn.RNNBase)):
        for name, weight in recurrent.named_parameters():
            (nn.init.zeros_ if "bias" in name else rules[settings.init])(weight)
    if settings.init == "lsuv":
        index = np.linspace(0, len(task.inputs) - 1, min(SAMPLES, len(task.inputs)))
        unit_variance(model, torch.from_numpy(task.inputs[index.astype(np.int64)]))


def linear_maps(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the layers that are initialised."""
    yield from (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))


@torch.no_grad()
def unit_variance(model: nn.Module, inputs: Tensor) -> None:
    """Scale each linear map so that its outputs have variance 1 on these inputs.

    One pass is enough: biases are zero, so that scaling a weight scales its output, and each layer
    hands on outputs that are scaled already. Weights follow at the end: a network that
    differentiates itself still reads them.
    """
    deviations: list[tuple[nn.Module, Tensor]] = []

    def scale(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        deviation = output.std().clamp_min(torch.finfo(output.dtype).tiny)
        deviations.append((layer, deviation.detach()))
        return output / deviation

    handles = [layer.register_forward_hook(scale) for layer in linear_maps(model)]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for layer, deviation in deviations:
        layer.weight.div_(deviation)  # type: ignore[operator]
