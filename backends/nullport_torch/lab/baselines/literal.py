"""The paper's recipe taken literally (Wu et al., 2025): SVD, dense projector, double backward.

    W <- W + eta * grad_W (||g||^2 / 2) (I - U U^T),    U from the SVD of the layer's inputs,

with ``X^T = U S V^T`` (in, samples) and the leading columns of ``U`` that together hold all but a
share tau of the energy ``sum S^2``; tau = 0 is the exact null space. How the paper defines its
threshold is not known; the energy is what the work it builds on uses (Saha et al., 2021).
The step is fixed, nothing is checked, and the SVD is taken once per teleport.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines.layers import Seen, gradient_work, seen
from nullport_torch.lab.baselines.problem import Problem


def teleport(problem: Problem, *, steps: int = 10, rate: float = 0.1, tau: float = 0.0) -> None:
    """Take ``steps`` ascent steps of size ``rate`` on every ``nn.Linear``, in place."""
    found = [layer for layer in seen(problem) if isinstance(layer.module, nn.Linear)]
    projectors = [projector(layer.x, tau) for layer in found]
    problem.charge(sum(_work(layer, steps) for layer in found), gradient_work(found))
    weights = [layer.weight for layer in found]
    for _ in range(steps):
        ascent = problem.hessian_gradient(weights)
        with torch.no_grad():
            for w, d, p in zip(weights, ascent, projectors, strict=True):
                w += rate * d @ p


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
    p: Tensor = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - u @ u.T
    return p


def _work(layer: Seen, steps: int) -> float:
    """Return the operations of an SVD (Golub and Van Loan), a projector and its products."""
    (n, d), size = layer.x.shape, layer.weight.numel()
    small, large = min(n, d), max(n, d)
    return 14.0 * large * small**2 + 8.0 * small**3 + 2.0 * d**2 * small + 2.0 * steps * size * d
