"""What a teleport did: losses, gradient norm and the optimizer's next step, before and after.

    gain = ||g'|| / ||g||,     change = L(w') / L(w) - 1,     step = 1 - L(w' - lr g') / L(w')

A gain counts only while the next step of SGD behaves, ``L(w' - lr g') <= L(w') - lr ||g'||^2 / 2``:
the gradient norm is unbounded on the level set, and any gain can be had by moving far enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines.problem import Problem, inner

ARMIJO = 0.5


@dataclass(frozen=True)
class State:
    """What is measured at one point.

    Attributes:
        loss: On the batch.
        other: On other samples.
        grad_norm: On the batch.
        stepped: Loss on the batch after a step of SGD.
        behaves: Whether that step lowers the loss by half of what the gradient promises.
    """

    loss: float
    other: float
    grad_norm: float
    stepped: float
    behaves: bool


@dataclass(frozen=True)
class Outcome:
    """What a teleport did.

    Attributes:
        change: Relative change of the loss on the batch.
        other_change: The same on other samples.
        gain: Gradient norm after over before.
        step: Relative decrease of the batch's loss by the optimizer's next step.
        behaves: Whether that step behaves.
    """

    change: float
    other_change: float
    gain: float
    step: float
    behaves: bool


def state(problem: Problem, others: tuple[Tensor, Tensor], lr: float) -> State:
    """Measure the problem where it is; ``others`` are other inputs and labels."""
    g, kept = problem.gradient(), problem.values()
    size = inner(g, g)
    with torch.no_grad():
        loss = float(problem.loss())
        other = float(nn.functional.cross_entropy(problem.model(others[0]), others[1]))
        problem.assign([p - lr * d for p, d in zip(kept, g, strict=True)])
        stepped = float(problem.loss())
        problem.assign(kept)
    behaves = loss - stepped >= ARMIJO * lr * size
    return State(loss, other, size**0.5, stepped, behaves)


def outcome(before: State, after: State) -> Outcome:
    """Compare two states."""
    return Outcome(
        after.loss / before.loss - 1,
        after.other / before.other - 1,
        after.grad_norm / before.grad_norm if before.grad_norm else math.nan,
        1 - after.stepped / after.loss,
        after.behaves,
    )
