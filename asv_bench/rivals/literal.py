"""The paper's recipe taken literally (Wu et al., 2025): SVD, dense projector, double backward.

W <- W + eta * grad_W (||g||^2 / 2) (I - U U^T),    U from the SVD of the layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def literal_teleport(
    model: nn.Module, closure: Callable[[], Tensor], steps: int, rate: float
) -> None:
    """Take ``steps`` ascent steps of size ``rate`` on every ``nn.Linear``, in place."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    projectors = [_projector(x) for x in _inputs(linears, closure)]
    weights = [m.weight for m in linears]
    for _ in range(steps):
        gradients = torch.autograd.grad(closure(), list(model.parameters()), create_graph=True)
        objective = sum((g**2).sum() for g in gradients) / 2
        ascent = torch.autograd.grad(objective, weights)
        with torch.no_grad():
            for w, d, projector in zip(weights, ascent, projectors, strict=True):
                w += rate * d @ projector


def _inputs(linears: list[nn.Linear], closure: Callable[[], Tensor]) -> list[Tensor]:
    """Return the input of every layer, shape (samples, in)."""
    found: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, x, _y: found.append(x[0])) for m in linears]
    with torch.no_grad():
        closure()
    for hook in hooks:
        hook.remove()
    return [x.reshape(-1, x.shape[-1]) for x in found]


def _projector(x: Tensor) -> Tensor:
    """Return the dense projector onto the null space of the rows of ``x``, shape (in, in)."""
    u, s, _ = torch.linalg.svd(x.T, full_matrices=False)
    u = u[:, s > s.max() * x.shape[1] * torch.finfo(x.dtype).eps]
    return torch.eye(x.shape[1], dtype=x.dtype) - u @ u.T
