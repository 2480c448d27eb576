"""Symmetry teleportation of a bias-free LeakyReLU MLP: group actions between adjacent layers.

A group element ``I + T`` acts on adjacent weights (V, U), ``h`` the input of ``V``, ``s`` the
activation, here in columns as published:

    2022 (Zhao et al., 2205.10637):  V <- s^-1((I + T) s(V h)) h^+,     U <- U (I + T)^-1
    2024 (Zhao et al., 2305.13404):  V <- (I + T) V,    U <- U s(V h) s((I + T) V h)^+

The first is exact where samples <= inputs (and published with ``I - T``, its inverse to first
order), the second where samples <= hidden width. The pairs are acted on one after the other, first
layer first. ``T`` starts at 0 in every step and ascends ``||g||^2`` through the action.

The code has samples in rows: ``h`` (n, in), ``W`` (out, in), ``z = h W^T``. Where the action is
exact, ``z`` of the layers behind does not change, so ``U`` of an inner pair is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines import symmetry_ascent
from nullport_torch.lab.baselines.chains import chain
from nullport_torch.lab.baselines.problem import Problem

SLOPE = 0.1


class Acted(NamedTuple):
    """Weights after an action, and what it knows of the network there.

    Attributes:
        weights: ``W_i``, each (out, in).
        inputs: Inputs ``h_i`` of every layer, each (n, in).
        inverses: ``h_i^+``, each (in, n); None where the action does not need it.
    """

    weights: list[Tensor]
    inputs: list[Tensor]
    inverses: list[Tensor | None]


def teleport(
    problem: Problem,
    *,
    steps: int = 10,
    rate: float = 1e-2,
    action: str = "2022",
    exact: bool = True,
) -> None:
    """Take ``steps`` ascent steps on the group elements, in place.

    The ascent is computed by products (:mod:`~nullport_torch.lab.baselines.symmetry_ascent`): the
    same direction as by differentiating the action, but several times faster. That needs the action
    to be exact.

    Args:
        problem: A bias-free chain with LeakyReLU.
        steps: Ascent steps.
        rate: Ascent rate on T.
        action: ``"2022"`` or ``"2024"``.
        exact: For 2022, invert ``I + T`` rather than take ``I - T``, as published.

    Raises:
        ValueError: If the network is no such chain, there are more samples than the action can be
            exact for, or ReLU, which has no inverse, is to be acted on by 2022.
    """
    weights, x = [w.detach() for w in chain(problem)], problem.x.flatten(1)
    if action not in WORKS or (action == "2022" and problem.slope <= 0):
        msg = f"invalid action: {action!r} with slope {problem.slope}; allowed: '2024', or '2022' "
        msg += "with a slope above 0"
        raise ValueError(msg)
    inner_widths = [w.shape[1] for w in weights[1:]]
    limit = min([weights[0].shape[1], *inner_widths[:-1]] if action == "2022" else inner_widths)
    if len(x) > limit:
        msg = f"invalid number of samples: {len(x)}; allowed: at most {limit}"
        raise ValueError(msg)
    ascent = {"2022": symmetry_ascent.ascent_2022, "2024": symmetry_ascent.ascent_2024}[action]

    @torch.no_grad()
    def act(now: Sequence[Tensor], ts: Sequence[Tensor], x_inverse: Tensor | None) -> Acted:
        inverse = symmetry_ascent.right_inverse
        problem.charge(WORKS[action](now, len(x)))
        if action == "2024":
            return act_2024(now, ts, x, problem.slope, inverse)
        return act_2022(now, ts, x, problem.slope, inverse, exact=exact, x_inverse=x_inverse)

    zeros = [w.new_zeros(w.shape[0], w.shape[0]) for w in weights[:-1]]
    now = act(weights, zeros, None)  # even T = 0 moves: it drops what the batch does not see
    x_inverse = now.inverses[0]
    problem.assign(now.weights)
    for _ in range(steps):
        curvature = problem.hessian_gradient()
        with torch.no_grad():
            ts = [rate * t for t in ascent(now, curvature, problem.slope)]
        problem.charge(symmetry_ascent.work(now.weights, len(x)))
        now = act(now.weights, ts, x_inverse)
        problem.assign(now.weights)


def work_2022(weights: Sequence[Tensor], n: int) -> float:
    """Return the operations of an action, by pairs: an inverse (QR), products, a solution."""
    total = 2.0 * n * weights[0].numel()
    for v, u in pairwise(weights):
        width = v.shape[0]
        total += 5.0 * n**2 * v.shape[1] + 2.0 * n * (width**2 + v.numel() + u.numel())
    width, outputs = weights[-1].shape[1], weights[-1].shape[0]
    return total + 2.0 * width**2 * (width / 3 + outputs)


def work_2024(weights: Sequence[Tensor], n: int) -> float:
    """Return the operations of an action, by pairs: an inverse (QR) and products."""
    total = 0.0
    for v, u in pairwise(weights):
        width = v.shape[0]
        total += 5.0 * n**2 * width + 2.0 * n * (width**2 + v.numel() + 2 * u.numel())
        total += 4.0 * width * v.numel()  # (I + T) V, and what its ascent has in its place
    return total


WORKS = {"2022": work_2022, "2024": work_2024}
"""Operations of each action, from the weights and the number of samples."""


def act_2022(
    weights: Sequence[Tensor],
    ts: Sequence[Tensor],
    x: Tensor,
    slope: float = SLOPE,
    inverse: Callable[[Tensor], Tensor] = torch.linalg.pinv,
    *,
    exact: bool = False,
    x_inverse: Tensor | None = None,
) -> Acted:
    """Apply the action of 2022 with ``ts``, one (width, width) per pair of adjacent layers."""
    moved, hs, inverses = list(weights), [x], [inverse(x) if x_inverse is None else x_inverse]
    z = x @ weights[0].T
    for i, t in enumerate(ts):
        u, last = weights[i + 1], i == len(ts) - 1
        a = nn.functional.leaky_relu(z, slope)
        turned = a + a @ t.T
        moved[i] = (inverses[i] @ nn.functional.leaky_relu(turned, 1 / slope)).T
        hs.append(turned)
        if last:
            moved[-1] = _undone(u, t, exact=exact)
        else:  # the next pair only asks for what U makes of the turned activations
            z = (a if exact else turned - turned @ t.T) @ u.T
            inverses.append(inverse(turned))
    return Acted(moved, hs, [*inverses, None])


def _undone(u: Tensor, t: Tensor, *, exact: bool) -> Tensor:
    """Return ``U (I + T)^-1``, or ``U (I - T)``."""
    if not exact:
        return u - u @ t
    identity = torch.eye(t.shape[0], dtype=t.dtype, device=t.device)
    undone: Tensor = torch.linalg.solve(identity + t, u, left=False)
    return undone


def act_2024(
    weights: Sequence[Tensor],
    ts: Sequence[Tensor],
    x: Tensor,
    slope: float = SLOPE,
    inverse: Callable[[Tensor], Tensor] = torch.linalg.pinv,
) -> Acted:
    """Apply the action of 2024 with ``ts``, one (width, width) per pair of adjacent layers."""
    moved, hs = list(weights), [x]
    inverses: list[Tensor | None] = [None]
    for i, t in enumerate(ts):
        z = hs[i] @ moved[i].T
        outputs = nn.functional.leaky_relu(z, slope) @ moved[i + 1].T
        moved[i] = moved[i] + t @ moved[i]
        hs.append(nn.functional.leaky_relu(z + z @ t.T, slope))
        h_inverse = inverse(hs[-1])
        inverses.append(h_inverse)
        moved[i + 1] = (h_inverse @ outputs).T
    return Acted(moved, hs, inverses)
