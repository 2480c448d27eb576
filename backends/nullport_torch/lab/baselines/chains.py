"""The networks that symmetries between layers ask for: bias-free chains of matrices.

f(x) = W_k s(W_{k-1} ... s(W_1 x)),    W_i (out, in),    s a LeakyReLU (slope 0: ReLU)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines.problem import Problem


def mlp(
    sizes: Sequence[int], slope: float = 0.1, dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Sequential:
    """Return the bias-free MLP that every rival can handle, in torch's own initialisation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=False, dtype=dtype), nn.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-1])


def chain(problem: Problem) -> list[Tensor]:
    """Return the weights ``W_i`` of a bias-free chain, which may have an ``nn.Flatten`` in front.

    Raises:
        ValueError: If the model is anything else: has biases, or other activations than LeakyReLU
            or ReLU of the problem's slope.
    """
    model, slope = problem.model, problem.slope
    modules = list(model.children()) if isinstance(model, nn.Sequential) else [model]
    if len(modules) > 1 and isinstance(modules[0], nn.Flatten):
        modules = modules[1:]
    for i, module in enumerate(modules):
        if not (_linear(module) if i % 2 == 0 else _slope(module) == slope):
            msg = f"invalid layer: {module}; allowed: an nn.Sequential of nn.Linear without bias "
            msg += f"and of LeakyReLU({slope}) in turns, with an nn.Flatten in front or without"
            raise ValueError(msg)
    if len(modules) % 2 == 0:
        msg = f"invalid last layer: {modules[-1]}; allowed: nn.Linear without bias"
        raise ValueError(msg)
    return problem.parameters


def slope_of(model: nn.Module, otherwise: float = 0.1) -> float:
    """Return the slope of the first LeakyReLU of a model."""
    found = (m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU))
    return float(next(found, otherwise))


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.bias is None


def _slope(module: nn.Module) -> float | None:
    if isinstance(module, nn.LeakyReLU):
        return float(module.negative_slope)
    return 0.0 if isinstance(module, nn.ReLU) else None
