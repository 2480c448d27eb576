"""The paper's recipe taken literally (Wu et al., 2025): SVD, dense projector, double backward.

    W <- W + eta * grad_W (||g||^2 / 2) (I - U U^T),    U from the SVD of the layer's inputs,

with ``X^T = U S V^T`` (in, samples) and the leading columns of ``U`` that together hold all but a
share tau of the energy ``sum S^2``; tau = 0 is the exact null space. How the paper defines its
threshold is not known; the energy is what the work it builds on uses (Saha et al., 2021).
The step is fixed, nothing is checked, and the SVD is taken once per teleport.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rivals.problem import Problem


def teleport(problem: Problem, *, steps: int = 10, rate: float = 0.1, tau: float = 0.0) -> None:
    """Teleport ``problem`` in place; see :func:`literal_teleport`."""
    literal_teleport(problem.model, problem.loss, steps, rate, tau)


def literal_teleport(
    model: nn.Module, closure: Callable[[], Tensor], steps: int, rate: float, tau: float = 0.0
) -> None:
    """Take ``steps`` ascent steps of size ``rate`` on every ``nn.Linear``, in place."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    projectors = [projector(x, tau) for x in inputs(linears, closure)]
    weights = [m.weight for m in linears]
    for _ in range(steps):
        gradients = torch.autograd.grad(closure(), list(model.parameters()), create_graph=True)
        objective = sum((g**2).sum() for g in gradients) / 2
        ascent = torch.autograd.grad(objective, weights)
        with torch.no_grad():
            for w, d, p in zip(weights, ascent, projectors, strict=True):
                w += rate * d @ p


def inputs(linears: list[nn.Linear], closure: Callable[[], Tensor]) -> list[Tensor]:
    """Return the input of every layer, shape (samples, in)."""
    found: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, x, _y: found.append(x[0])) for m in linears]
    with torch.no_grad():
        closure()
    for hook in hooks:
        hook.remove()
    return [x.reshape(-1, x.shape[-1]) for x in found]


def projector(x: Tensor, tau: float = 0.0) -> Tensor:
    """Return the dense projector onto the (approximate) null space of ``x``, shape (in, in).

    Args:
        x: Inputs, shape (samples, in).
        tau: Share of their energy that may be given up, in [0, 1].
    """
    u, s, _ = torch.linalg.svd(x.T, full_matrices=False)
    given_up = (s**2).flip(0).cumsum(0).flip(0)  # by dropping this direction and all smaller ones
    rank = s > s.max() * max(x.shape) * torch.finfo(x.dtype).eps
    u = u[:, rank & (given_up > tau * given_up[0])]
    return torch.eye(x.shape[1], dtype=x.dtype) - u @ u.T
