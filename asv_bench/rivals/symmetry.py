"""Symmetry teleportation (Zhao et al., 2022) for a bias-free MLP with LeakyReLU.

A group element ``I + T`` acts between layers: ``V <- s^-1((I + T) s(V h)) h^+`` and
``U <- U (I - T)`` for adjacent weights (V, U), ``h`` the input of ``V`` and ``s`` the activation.
``T`` ascends ``||g||^2`` through the differentiated action, one T per pair of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SLOPE = 0.1


def _activation(z: Tensor) -> Tensor:
    return nn.functional.leaky_relu(z, SLOPE)


def _inverse(z: Tensor) -> Tensor:
    return nn.functional.leaky_relu(z, 1 / SLOPE)


def forward(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the outputs (samples, out) of the MLP with ``weights`` (out, in)."""
    for w in weights[:-1]:
        x = _activation(x @ w.T)
    return x @ weights[-1].T


def symmetry_teleport(
    weights: Sequence[Tensor], x: Tensor, y: Tensor, *, steps: int, rate: float
) -> list[Tensor]:
    """Return the weights after ``steps`` ascent steps on the group elements.

    Args:
        weights: Matrices (out, in), first layer first.
        x: Inputs, shape (samples, in).
        y: Class labels, shape (samples,).
        steps: Ascent steps; T restarts at 0 in each.
        rate: Ascent rate on T.
    """
    now = [w.detach() for w in weights]
    for _ in range(steps):
        ts = [torch.zeros(w.shape[0], w.shape[0], requires_grad=True) for w in now[:-1]]
        moved = act(now, ts, x)
        loss = nn.functional.cross_entropy(forward(moved, x), y)
        gradients = torch.autograd.grad(loss, moved, create_graph=True)
        objective = sum((g**2).sum() for g in gradients)
        ascent = torch.autograd.grad(objective, ts)
        with torch.no_grad():
            now = [w.detach() for w in act(now, [rate * d for d in ascent], x)]
    return now


def act(weights: Sequence[Tensor], ts: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Apply the group elements ``I + T`` between every two adjacent layers."""
    moved, h = list(weights), x
    for i, t in enumerate(ts):
        z = _activation(h @ moved[i].T)
        identity = torch.eye(t.shape[0], dtype=t.dtype)
        turned = z @ (identity + t).T
        moved[i] = (torch.linalg.pinv(h) @ _inverse(turned)).T
        moved[i + 1] = moved[i + 1] @ (identity - t)
        h = turned
    return moved
