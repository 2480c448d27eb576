"""The ascent direction of symmetry teleportation by products, without differentiating an action.

With ``D_i = d(||g||^2 / 2)/dW_i = (H g)_i`` at the weights of ``T = 0``, the derivative over
``T_i`` follows by the chain rule. In rows, ``h_i`` (n, in), ``z_i = h_i W_i^T``, ``a_i = s(z_i)``,
``P_i = h_i^+``, and where the action is exact, so that every ``z_i`` stays:

    2022:  W_i^T = P_i s^-1(a_i (I + T_i)^T),   h_{i+1} = a_i (I + T_i)^T,   last: U (I + T)^-1
           dT_i = ((P_i^T D_i^T) / s'(z_i))^T a_i + B^T a_i            (last: - U^T D)
    2024:  W_i <- (I + T_i) W_i,   W_{i+1}^T = s(z_i (I + T_i)^T)^+ z_{i+1}
           dT_i = D_i W_i^T + (B * s'(z_i))^T z_i

with ``B`` the pull-back of ``D_{i+1}^T z_{i+1}^T`` through ``A -> A^+`` at ``A = h_{i+1}``, from

    dA^+ = - A^+ dA A^+ + A^+ A^{+T} dA^T (I - A A^+) + (I - A^+ A) dA^T A^{+T} A^+

(Golub and Pereyra, 1973). One Hessian-vector product and thin products per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nullport_torch.lab.baselines.symmetry import Acted


def ascent_2022(at: Acted, curvature: Sequence[Tensor], slope: float) -> list[Tensor]:
    """Return ``d(||g||^2 / 2)/dT_i`` at ``T = 0``, each (width, width)."""
    found: list[Tensor] = []
    pairs = len(at.weights) - 1
    for i in range(pairs):
        a, inverse = at.inputs[i + 1], at.inverses[i]
        assert inverse is not None
        back = (inverse.T @ curvature[i].T) / _derivative(a, slope)
        if i == pairs - 1:
            found.append(back.T @ a - at.weights[-1].T @ curvature[-1])
        else:
            found.append((back + _through_inverse(at, curvature, i + 1)).T @ a)
    return found


def ascent_2024(at: Acted, curvature: Sequence[Tensor], slope: float) -> list[Tensor]:
    """Return ``d(||g||^2 / 2)/dT_i`` at ``T = 0``, each (width, width)."""
    found: list[Tensor] = []
    for i in range(len(at.weights) - 1):
        z = at.inputs[i] @ at.weights[i].T
        back = _through_inverse(at, curvature, i + 1) * _derivative(z, slope)
        found.append(curvature[i] @ at.weights[i].T + back.T @ z)
    return found


def work(weights: Sequence[Tensor], n: int) -> float:
    """Return the operations of an ascent direction, pair by pair; both take much the same."""
    total = 0.0
    for v, u in pairwise(weights):
        width = v.shape[0]
        total += 2.0 * n * (v.numel() + width**2 + 2 * u.numel())
        total += 12.0 * n**2 * width + 10.0 * n * width**2  # through the inverse
    return total


def _derivative(z: Tensor, slope: float) -> Tensor:
    """Return ``s'(z)``; the sign of ``s(z)`` is that of ``z``, so either will do."""
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, slope))


def _through_inverse(at: Acted, curvature: Sequence[Tensor], i: int) -> Tensor:
    """Return ``B`` (n, in) for layer ``i``."""
    h, inverse = at.inputs[i], at.inverses[i]
    assert inverse is not None
    outputs = h @ at.weights[i].T
    return inverse_pull_back(h, inverse, curvature[i].T @ outputs.T)


def inverse_pull_back(a: Tensor, inverse: Tensor, g: Tensor) -> Tensor:
    """Return the gradient over ``A`` (n, d) for the gradient ``g`` (d, n) over ``A^+`` (d, n)."""
    direct = -(inverse.T @ g) @ inverse.T
    wide = inverse.T @ (inverse @ g.T - inverse @ ((g.T @ inverse) @ a))
    tall = (g.T @ inverse) @ inverse.T
    return direct + wide + tall - a @ (inverse @ tall)


def right_inverse(h: Tensor) -> Tensor:
    """Return ``h^+`` (d, n), by QR where ``h`` (n, d) clearly has full row rank, else by SVD.

    With ``h^T = Q R``, ``h^+ = Q R^-T``; several times faster than an SVD.

    Raises:
        torch.linalg.LinAlgError: If ``h`` is not finite.
    """
    if h.shape[0] <= h.shape[1]:
        q, r = torch.linalg.qr(h.T)
        pivots = r.diagonal().abs()
        if not pivots.isfinite().all():
            msg = "activations that are not finite have no inverse: the rate is too large"
            raise torch.linalg.LinAlgError(msg)  # type: ignore[attr-defined]
        if pivots.min() > 10 * max(h.shape) * torch.finfo(h.dtype).eps * pivots.max():
            solved: Tensor = torch.linalg.solve_triangular(r.T, q, upper=False, left=False)
            return solved
    inverse: Tensor = torch.linalg.pinv(h)
    return inverse
