"""What every rival is given: a network, one fixed batch, and the loss on it.

    L(w) = cross-entropy(f(x; w), y),    g = dL/dw,    H = d^2L/dw^2

with ``x`` (samples, in), ``y`` (samples,) and, for the methods that ask for it, ``f`` a bias-free
chain of matrices ``W_i`` (out, in) with LeakyReLU of a known slope in between (slope 0: ReLU).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(eq=False)
class Problem:
    """A network and the batch it is teleported on.

    Attributes:
        model: Any module from ``x`` to class scores.
        x: Inputs, shape (samples, in).
        y: Class labels, shape (samples,).
        slope: Slope of the LeakyReLU between layers on the negative side; 0 is ReLU.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    slope: float = 0.1

    def loss(self) -> Tensor:
        """Return the loss on the batch, 0-d; it may be called as a closure."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def loss_at(self, parameters: dict[str, Tensor]) -> Tensor:
        """Return the loss with other parameters, 0-d; the model is left alone."""
        return nn.functional.cross_entropy(functional_call(self.model, parameters, self.x), self.y)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the model's order."""
        return list(self.model.parameters())

    def gradient(self) -> list[Tensor]:
        """Return ``g``, one tensor per parameter."""
        return list(torch.autograd.grad(self.loss(), self.parameters))

    def hessian_gradient(self) -> list[Tensor]:
        """Return ``H g``, the gradient of ``||g||^2 / 2``, by double backward."""
        parameters = self.parameters
        g = torch.autograd.grad(self.loss(), parameters, create_graph=True)
        return hessian_vector(g, parameters, [part.detach() for part in g])

    def grad_norm(self) -> float:
        """Return ``||g||``."""
        g = self.gradient()
        return inner(g, g) ** 0.5

    def assign(self, values: Sequence[Tensor]) -> None:
        """Copy ``values`` into the parameters."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def values(self) -> list[Tensor]:
        """Return a copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def copy(self) -> Problem:
        """Return the same problem with a model of its own."""
        return Problem(copy.deepcopy(self.model), self.x, self.y, self.slope)


def hessian_vector(
    g: Sequence[Tensor], parameters: Sequence[Tensor], v: Sequence[Tensor]
) -> list[Tensor]:
    """Return ``H v`` for a gradient ``g`` that kept its graph, which is freed."""
    return list(torch.autograd.grad(g, parameters, grad_outputs=v))


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return ``<a, b>`` over all parameters."""
    parts = [
        torch.dot(p.detach().flatten(), q.detach().flatten()) for p, q in zip(a, b, strict=True)
    ]
    return float(torch.stack(parts).sum())


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
    """Return the weights ``W_i`` of a bias-free chain.

    Raises:
        ValueError: If the model has other parameters, or other activations than LeakyReLU or ReLU
            of the problem's slope.
    """
    for module in problem.model.children():
        slope = getattr(module, "negative_slope", 0.0 if isinstance(module, nn.ReLU) else None)
        linear = isinstance(module, nn.Linear) and module.bias is None
        if not linear and slope != problem.slope:
            msg = f"invalid layer: {module}; allowed: nn.Linear without bias, "
            msg += f"LeakyReLU({problem.slope})"
            raise ValueError(msg)
    return problem.parameters
