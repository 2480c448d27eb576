"""Level-set teleportation by normalised SLP (Mishkin, Bietti and Gower, 2024, arXiv 2403.03362).

    maximise log ||g(x)||    subject to    f(x) <= f_0,

by linearising both: with ``q = H g`` (one Hessian-vector product), step size rho,

    d = rho q / ||g||^2 - v g,     v = max(0, (rho <q, g> / ||g||^2 + f - f_0) / ||g||^2).

rho is halved until the merit ``log ||g|| - gamma max(0, f - f_0)`` grows by at least ``alpha``
times what the linearisation promises,

    <q, d> / ||g||^2 + gamma max(0, f - f_0),

and doubled after a step that gave five times that. ``gamma`` exceeds the multiplier ``v / rho``
by a tenth, so that the promise is never negative. The search ends where the part of
``q / ||g||^2`` that is orthogonal to ``g`` and the violation are both small; a number that is not
finite ends it too. The gradient at an accepted trial is the next step's: one gradient and one
product per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nullport_torch.lab.baselines.problem import Problem, inner

FLOOR = 1e-16
"""Smallest rho."""

MORE = 0.1
"""By how much the weight of the penalty exceeds the multiplier, relative."""

GENEROUS = 5.0
"""How many times the promise a step must give for rho to be doubled."""


@dataclass
class Point:
    """The loss and its gradient, which keeps its graph, at one point.

    Attributes:
        loss: ``f``.
        g: One tensor per parameter.
        size: ``||g||^2``.
    """

    loss: float
    g: Sequence[Tensor]
    size: float


@dataclass
class Step:
    """A step of the linearised problem: ``d = ascent * q - descent * g``.

    Attributes:
        ascent: ``rho / ||g||^2``.
        descent: ``v``.
        promise: What the merit should gain.
        penalty: ``gamma``.
    """

    ascent: float
    descent: float
    promise: float
    penalty: float


def teleport(
    problem: Problem,
    *,
    steps: int = 50,
    rate: float = 0.1,
    alpha: float = 0.5,
    beta: float = 0.5,
    backtracks: int = 25,
    tolerance: float = 1e-6,
) -> None:
    """Take at most ``steps`` steps of the solver, in place.

    Args:
        problem: Any network.
        steps: Steps, each with a Hessian-vector product.
        rate: First rho.
        alpha: Share of the promise that the merit must gain.
        beta: Factor of rho after a trial that did not.
        backtracks: Trials per step; after as many failures the search ends.
        tolerance: Of the squared projected residual and of the violation, at which it ends.
    """
    here, rho = look(problem), rate
    level = here.loss
    for _ in range(steps):
        q = problem.hessian_vector(here.g, [part.detach() for part in here.g])
        along, length = inner(q, here.g), inner(q, q)
        residual = (length - along**2 / here.size) / here.size**2 if here.size else 0.0
        done = residual <= tolerance and here.loss - level <= tolerance
        if done or not math.isfinite(residual):
            return
        start = problem.values()
        for _ in range(backtracks):
            step = linearised(here, along, length, rho, here.loss - level)
            move(problem, start, q, here.g, step)
            there = look(problem)
            gained = merit_gain(here, there, level, step.penalty)
            if gained >= alpha * step.promise:  # false for what is not a number
                break
            rho = max(beta * rho, FLOOR)
        else:
            problem.assign(start)
            return
        if gained >= GENEROUS * alpha * step.promise:
            rho *= 2
        here = there


def look(problem: Problem) -> Point:
    """Return the point where the problem is."""
    loss = problem.loss()
    g = problem.backward(loss, problem.parameters, keep_graph=True)
    detached = [part.detach() for part in g]
    return Point(float(loss.detach()), g, inner(detached, detached))


def linearised(at: Point, along: float, length: float, rho: float, violation: float) -> Step:
    """Solve the linearised problem.

    Args:
        at: The point.
        along: ``<q, g>``.
        length: ``||q||^2``.
        rho: Step size.
        violation: ``f - f_0``.
    """
    ascent = rho / at.size
    descent = max(0.0, (ascent * along + violation) / at.size)
    penalty = (1 + MORE) * descent / rho
    objective = (ascent * length - descent * along) / at.size
    return Step(ascent, descent, objective + penalty * max(0.0, violation), penalty)


def merit_gain(here: Point, there: Point, level: float, penalty: float) -> float:
    """Return how much the merit grows from ``here`` to ``there``."""
    if not (there.size > 0 and math.isfinite(there.size)):
        return math.nan
    worse = max(0.0, there.loss - level) - max(0.0, here.loss - level)
    return 0.5 * math.log(there.size / here.size) - penalty * worse


@torch.no_grad()
def move(
    problem: Problem, start: Sequence[Tensor], q: Sequence[Tensor], g: Sequence[Tensor], step: Step
) -> None:
    """Set the parameters to ``start + d``."""
    for parameter, old, a, b in zip(problem.parameters, start, q, g, strict=True):
        torch.add(old, a, alpha=step.ascent, out=parameter)
        parameter.sub_(b, alpha=step.descent)
