"""Symmetry teleportation as published: the ascent by differentiating the whole action.

    T = rate * d(||g||^2) / dT    at T = 0, through an action of ``symmetry``

Slower than :mod:`~nullport_torch.lab.baselines.symmetry_ascent`, which gives the same direction;
the oracle of its tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines.symmetry import SLOPE, Acted, act_2022


def forward(weights: Sequence[Tensor], x: Tensor, slope: float = SLOPE) -> Tensor:
    """Return the outputs (samples, out) of the MLP with ``weights`` (out, in)."""
    for w in weights[:-1]:
        x = nn.functional.leaky_relu(x @ w.T, slope)
    outputs: Tensor = x @ weights[-1].T
    return outputs


def symmetry_teleport(
    weights: Sequence[Tensor], x: Tensor, y: Tensor, *, steps: int, rate: float
) -> list[Tensor]:
    """Return the weights after ``steps`` ascent steps of 2022, each by differentiating the action.

    This is the published recipe step by step; ``symmetry.teleport`` is the same, faster.

    Args:
        weights: Matrices (out, in), first layer first.
        x: Inputs, shape (samples, in).
        y: Class labels, shape (samples,).
        steps: Ascent steps; T restarts at 0 in each.
        rate: Ascent rate on T.
    """
    now = [w.detach() for w in weights]
    for _ in range(steps):
        ascent = differentiated(act_2022, now, x, y)
        with torch.no_grad():
            now = act_2022(now, [2 * rate * d for d in ascent], x).weights
    return now


def differentiated(
    act: Callable[..., Acted], weights: Sequence[Tensor], x: Tensor, y: Tensor, **options: object
) -> list[Tensor]:
    """Return ``d(||g||^2 / 2) / dT`` at ``T = 0`` by differentiating the whole action."""
    ts = [w.new_zeros(w.shape[0], w.shape[0]).requires_grad_() for w in weights[:-1]]
    moved = act([w.detach() for w in weights], ts, x, **options).weights
    loss = nn.functional.cross_entropy(forward(moved, x), y)
    gradients = torch.autograd.grad(loss, moved, create_graph=True)
    objective = torch.stack([(g**2).sum() for g in gradients]).sum() / 2
    return list(torch.autograd.grad(objective, ts))
