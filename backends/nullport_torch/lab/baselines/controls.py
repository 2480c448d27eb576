"""Controls: what a teleport gains beyond moving at random, and beyond a larger learning rate.

    random null-space move:   W <- W + radius ||W|| N / ||N||,    N = D (I - Q Q^T), D normal
    matched learning rate:    lr <- lr ||g'|| / ||g||,            no move

with ``Q`` (in, rows) an orthonormal basis of the layer's inputs, and ``g'`` the gradient that
nullport's teleport reaches. Like nullport's with the paper's objective, the random move leaves
layers alone whose inputs do not depend on weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nullport import TeleportConfig, TeleportReport
from nullport_torch._api import teleport as nullport_teleport
from nullport_torch.lab.baselines.layers import Seen, gradient_work, seen
from nullport_torch.lab.baselines.problem import Problem


def random_move(problem: Problem, *, steps: int = 1, rate: float = 0.1, seed: int = 0) -> None:
    """Move every linear layer and convolution at random in its null space, in place.

    Layers stay whose inputs span everything, or do not depend on weights.

    Args:
        problem: Any network.
        steps: Moves, which share the radius as nullport's steps do.
        rate: Length of the whole move relative to each weight's norm.
        seed: Of the directions.
    """
    found = seen(problem)
    free = [layer for layer in found if layer.depends and len(layer.x) < layer.x.shape[1]]
    problem.charge(sum(_work(layer, steps) for layer in free), gradient_work(found))
    bases = [torch.linalg.qr(layer.x.T)[0] for layer in free]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        lengths = [rate / steps * layer.weight.norm() for layer in free]
        for _ in range(steps):
            for layer, q, length in zip(free, bases, lengths, strict=True):
                w = layer.weight
                d = _direction(w, q, random)
                size = d.norm()
                if size > 0:
                    w += d.reshape(w.shape) * (length / size)


def _direction(w: Tensor, q: Tensor, random: torch.Generator) -> Tensor:
    """Return a random matrix (out, in) of the null space."""
    d = torch.randn(w.shape, generator=random, dtype=w.dtype).to(w.device).flatten(1)
    for _ in range(2):  # what rounding leaves of the first pass
        d -= (d @ q) @ q.T
    return d


def _work(layer: Seen, steps: int) -> float:
    """Return the operations of a QR with its basis and of the projections."""
    n, d = layer.x.shape
    return 4.0 * n**2 * d + 8.0 * steps * n * layer.weight.numel()


def matched_rate(
    problem: Problem, *, lr: float, steps: int = 1, rate: float = 0.1, **options: object
) -> float:
    """Return ``lr`` scaled by what nullport's teleport does to the gradient norm.

    Args:
        problem: Any network; it is left as it was.
        lr: Learning rate.
        steps: nullport's steps.
        rate: Its radius.
        options: Other fields of :class:`nullport.TeleportConfig`.
    """
    report = trial(problem, steps=steps, rate=rate, **options)
    if not report.accepted:
        return lr
    return lr * float(report.grad_norm_after) / float(report.grad_norm_before)


def trial(
    problem: Problem, *, steps: int = 1, rate: float | str = 0.1, **options: object
) -> TeleportReport:
    """Return the report of nullport's teleport of a copy; arguments as :func:`matched_rate`."""
    other = problem.copy()
    config = TeleportConfig(radius=rate, steps=steps, **options)  # type: ignore[arg-type]
    report = nullport_teleport(other.model, other.loss, config=config)
    problem.spent += report.cost
    return report
