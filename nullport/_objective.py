"""What a teleport improves: a function phi of the weights, through the gradient g.

The projected gradient of ``phi(g)`` over the weights of a layer needs only ``v = dphi/dg`` (see
:mod:`nullport._direction`). An objective that also depends on other samples' loss adds their
gradient ``direct``:

    N = (delta^T Xdot - direct) P,      Xdot along v.

- ``grad_norm`` (Wu et al., 2025): ``phi = ||g||^2 / 2``, ``v = g``.
- ``decrease``: what the optimizer's own step ``u(g)`` gains, ``phi = <g, u(g)>``; for a
  preconditioner ``D`` that is held still, ``v = D g``.
- ``look_ahead``: minus the loss of *other* samples after the optimizer's step, ``-L2(w - u(g))``;
  with ``direct = grad L2(w - u)``, ``v = (du/dg)^T direct``.
- ``others``, a control: the same with ``v = 0``.

The optimizer's step is read from the user's own optimizer, run on a copy of its state; its
derivative is a difference of two such runs, symmetric for every elementwise rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nullport._arrays import Array, joint_norm, namespace, widen
from nullport._graph import LayerGraph

Vector = Sequence[Array | None]

PROBE = 1e-2
"""Relative length of the difference that differentiates the optimizer's step."""


@dataclass(frozen=True)
class Pull:
    """What an objective asks for.

    Attributes:
        v: Direction of the tangent pass, one array per parameter; None for no tangent pass.
        direct: Gradient to subtract before projecting, or None.
        cost: Compute used to find it, in gradients.
    """

    v: Vector | None
    direct: Vector | None = None
    cost: float = 0.0


def grad_norm(graph: LayerGraph, gradients: Vector) -> Pull:  # noqa: ARG001
    """Return ``v = g``."""
    return Pull(gradients)


def decrease(graph: LayerGraph, gradients: Vector) -> Pull:
    """Return ``v = D g``: the optimizer's step without what it would do at zero gradient."""
    zero = [None if g is None else namespace(g).zeros_like(g) for g in gradients]
    step, drift = graph.optimizer_step(gradients), graph.optimizer_step(zero)
    return Pull(combine(step, -1.0, drift))


def look_ahead(graph: LayerGraph, gradients: Vector) -> Pull:
    """Return ``direct = grad L2(w - u)`` and ``v = (du/dg)^T direct``."""
    step = graph.optimizer_step(gradients)
    direct = graph.elsewhere(step)
    size, other = length(gradients), length(direct)
    xp = namespace(size)
    probe = PROBE * size / xp.where(other > 0, other, xp.ones_like(other))
    probe = xp.where(probe > 0, probe, xp.full_like(probe, PROBE))
    bent = graph.optimizer_step(combine(gradients, probe, direct))
    v = [None if a is None else scaled(1 / probe, a) for a in combine(bent, -1.0, step)]
    return Pull(v, direct, cost=1.0)


def others(graph: LayerGraph, gradients: Vector) -> Pull:
    """Return ``direct = grad L2(w - u)`` alone."""
    return Pull(None, graph.elsewhere(graph.optimizer_step(gradients)), cost=1.0)


OBJECTIVES: dict[str, Callable[[LayerGraph, Vector], Pull]] = {
    "grad_norm": grad_norm,
    "decrease": decrease,
    "look_ahead": look_ahead,
    "others": others,
}


def pull(objective: str | Callable[[Vector], Vector], graph: LayerGraph, gradients: Vector) -> Pull:
    """Return what an objective, given by name or as a function from g to v, asks for.

    Raises:
        ValueError: If a custom objective returns arrays of another structure.
    """
    if isinstance(objective, str):
        return OBJECTIVES[objective](graph, gradients)
    v = objective(gradients)
    _check(v, gradients)
    return Pull(v)


def combine(a: Vector, factor: float | Array, b: Vector) -> list[Array | None]:
    """Return ``a + factor b``, None where ``a`` is None and taking ``b`` as 0 where it is None."""
    return [
        x if x is None or y is None else x + scaled(factor, y) for x, y in zip(a, b, strict=True)
    ]


def scaled(factor: float | Array, x: Array) -> Array:
    """Return ``factor x`` in the dtype of ``x``, for a Python number or a 0-d array."""
    if isinstance(factor, float):
        return factor * x
    xp = namespace(x)
    return xp.astype(factor, x.dtype, copy=False) * x


def length(vector: Vector) -> Array:
    """Return the norm over all parameters, 0-d."""
    return joint_norm([widen(a) for a in vector if a is not None])


def inner(a: Vector, b: Vector) -> Array:
    """Return the inner product over all parameters, 0-d."""
    terms = [
        namespace(x).sum(widen(x) * widen(y))
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None
    ]
    return sum(terms[1:], start=terms[0])


def _check(v: Vector, gradients: Vector) -> None:
    if len(v) != len(gradients):
        msg = f"the objective returned {len(v)} arrays for {len(gradients)} parameters"
        raise ValueError(msg)
    for index, (mine, theirs) in enumerate(zip(v, gradients, strict=True)):
        if mine is not None and theirs is not None and mine.shape != theirs.shape:
            msg = (
                f"the objective returned shape {tuple(mine.shape)} for parameter {index} "
                f"of shape {tuple(theirs.shape)}"
            )
            raise ValueError(msg)
