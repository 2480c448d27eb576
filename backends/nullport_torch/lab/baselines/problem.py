"""What every rival is given: a network, one fixed batch, the loss on it, and an account.

    L(w) = criterion(f(x; w), y),    g = dL/dw,    H = d^2L/dw^2

with samples first in ``x`` and ``y``. Compute is counted in gradients of the batch: a forward pass
is 1/3, a gradient 1, a Hessian-vector product on a kept graph 2; linear algebra by its operations
over the gradient's ``6 rows out in`` per weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nullport.network import BACKWARD, FORWARD

PRODUCT = 2.0
"""A Hessian-vector product on the graph of a gradient that was kept, in gradients."""


@dataclass(eq=False)
class Problem:
    """A network and the batch it is teleported on.

    Attributes:
        model: Any module.
        x: Inputs, samples first.
        y: Targets, samples first.
        slope: Slope of the LeakyReLU between layers on the negative side; 0 is ReLU. For methods
            that ask for a :func:`~nullport_torch.lab.baselines.chains.chain`.
        criterion: The loss of outputs and targets, 0-d; cross-entropy by default.
        spent: Compute so far, in gradients of the batch.
        first: The first loss that was computed, if no weights were assigned before; else None.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    slope: float = 0.1
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    spent: float = 0.0
    first: Tensor | None = field(default=None, repr=False)
    _moved: bool = field(default=False, repr=False)

    def loss(self) -> Tensor:
        """Return the loss on the batch, 0-d; it may be called as a closure."""
        self.spent += FORWARD
        loss = self.criterion(self.model(self.x), self.y)
        if self.first is None and not self._moved:
            self.first = loss.detach()
        return loss

    def loss_at(self, parameters: dict[str, Tensor]) -> Tensor:
        """Return the loss with other parameters, 0-d; the model is left alone."""
        self.spent += FORWARD
        return self.criterion(functional_call(self.model, parameters, self.x), self.y)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that are trained, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def gradient(self) -> list[Tensor]:
        """Return ``g``, one tensor per parameter."""
        return self.backward(self.loss(), self.parameters)

    def backward(
        self, loss: Tensor, to: Sequence[Tensor], *, keep_graph: bool = False
    ) -> list[Tensor]:
        """Return the gradient of a loss, zeros for what it does not depend on."""
        self.spent += BACKWARD
        found = torch.autograd.grad(loss, to, create_graph=keep_graph, materialize_grads=True)
        return list(found)

    def hessian_vector(
        self, g: Sequence[Tensor], v: Sequence[Tensor], to: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Return ``H v`` for a gradient ``g`` that kept its graph, which is freed.

        Args:
            g: One tensor per parameter.
            v: Shaped like ``g``.
            to: The parameters whose rows of ``H v`` are wanted; all if None.
        """
        self.spent += PRODUCT
        to = self.parameters if to is None else to
        pairs = [(a, b) for a, b in zip(g, v, strict=True) if a.requires_grad]
        if not pairs:  # the loss is linear in the parameters
            return [torch.zeros_like(p) for p in to]
        outputs, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, to, grad_outputs=vectors, materialize_grads=True)
        return list(found)

    def hessian_gradient(self, to: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return ``H g``, the gradient of ``||g||^2 / 2``, by double backward."""
        g = self.backward(self.loss(), self.parameters, keep_graph=True)
        return self.hessian_vector(g, [part.detach() for part in g], to)

    def grad_norm(self) -> float:
        """Return ``||g||``."""
        g = self.gradient()
        return float(inner(g, g) ** 0.5)

    def charge(self, operations: float, rows_by_size: float | None = None) -> None:
        """Count linear algebra.

        Args:
            operations: Floating-point operations.
            rows_by_size: Sum over weights of rows of input times entries, of which a gradient
                takes 6 operations each; by default all parameters see a row per sample.
        """
        if rows_by_size is None:
            rows_by_size = float(len(self.x)) * sum(p.numel() for p in self.parameters)
        self.spent += operations / (6.0 * max(rows_by_size, 1.0))

    def assign(self, values: Sequence[Tensor]) -> None:
        """Copy ``values`` into the parameters."""
        self._moved = True
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def values(self) -> list[Tensor]:
        """Return a copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def copy(self) -> Problem:
        """Return the same problem with a model and an account of its own."""
        model = copy.deepcopy(self.model)
        return replace(self, model=model, spent=0.0, first=None, _moved=False)


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return ``<a, b>`` over all parameters."""
    parts = [
        torch.dot(p.detach().flatten(), q.detach().flatten()) for p, q in zip(a, b, strict=True)
    ]
    return float(torch.stack(parts).sum())
