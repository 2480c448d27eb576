"""Controls: what a teleport gains beyond moving at random, and beyond a larger learning rate.

    random null-space move:   W <- W + radius ||W|| N / ||N||,    N = D (I - Q Q^T), D normal
    matched learning rate:    lr <- lr ||g'|| / ||g||,            no move

with ``Q`` (in, samples) an orthonormal basis of the layer's inputs, and ``g'`` the gradient that
nullport's teleport reaches. Like nullport's with the paper's objective, the random move leaves the
first layer alone.
"""

from __future__ import annotations

import torch
from torch import nn

from nullport import TeleportConfig
from nullport_torch import teleport as nullport_teleport
from rivals.literal import inputs
from rivals.problem import Problem


def random_move(problem: Problem, *, steps: int = 1, rate: float = 0.1, seed: int = 0) -> None:
    """Move every ``nn.Linear`` but the first at random in its null space, in place.

    Args:
        problem: Any network of ``nn.Linear`` layers.
        steps: Moves, which share the radius as nullport's steps do.
        rate: Length of the whole move relative to each weight's norm.
        seed: Of the directions.
    """
    linears = [m for m in problem.model.modules() if isinstance(m, nn.Linear)]
    bases = [torch.linalg.qr(x.T)[0] for x in inputs(linears, problem.loss)]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        lengths = [rate / steps * m.weight.norm() for m in linears]
        for _ in range(steps):
            for m, q, length in list(zip(linears, bases, lengths, strict=True))[1:]:
                d = torch.randn(m.weight.shape, generator=random, dtype=m.weight.dtype)
                for _ in range(2):  # what rounding leaves of the first pass
                    d -= (d @ q) @ q.T
                size = d.norm()
                if q.shape[0] > q.shape[1] and size > 0:
                    m.weight += d * (length / size)


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
    trial = problem.copy()
    before = trial.grad_norm()
    config = TeleportConfig(radius=rate, steps=steps, **options)  # type: ignore[arg-type]
    nullport_teleport(trial.model, trial.loss, config=config)
    return lr * trial.grad_norm() / before
