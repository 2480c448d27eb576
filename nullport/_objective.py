"""What a teleport improves: a function phi of the weights, through the gradient g.

The projected gradient of ``phi(g)`` over the weights of a layer needs only ``v = dphi/dg`` (see
:mod:`nullport._direction`). An objective that depends on the weights in another way too adds that
gradient, ``direct``:

    N = (delta^T Xdot - direct) P,      Xdot along v.

- ``grad_norm`` (Wu et al., 2025): ``phi = ||g||^2 / 2``, ``v = g``.
- ``decrease``: what the optimizer's own step ``u(g)`` gains, ``phi = <g, u(g)>``; for a
  preconditioner ``D`` that is held still, ``v = D g``.
- ``look_ahead``: minus the loss of *other* samples after the optimizer's step, ``-L2(w - u(g))``;
  with ``direct = grad L2(w - u)``, ``v = (du/dg)^T direct``.
- ``others``, a control: the same with ``v = 0``.
- ``sharpness`` (as Zhao et al., 2024, by curvature): minus the curvature of the loss along the
  optimizer's step, ``-(L(w - u) - L(w) + <g, u>)``, which is ``-<u, H u> / 2`` to second order.
  With ``u`` held still, ``v = -u`` and ``direct = grad L(w - u) - grad L(w)``.
- ``weight_norm``: ``-||W||^2 / 2``, ``direct = W``; no tangent, and the length is that of the
  projection, ``W P``, with which it is exact.

The optimizer's step is read from the user's own optimizer, run on a copy of its state; its
derivative is a difference of two such runs, symmetric for every elementwise rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nullport import _arrays as ar
from nullport._arrays import Array, Dense, Vector
from nullport.network import GRADIENT, LayerGraph

PROBE = 1e-2
"""Relative length of the difference that differentiates the optimizer's step."""


@dataclass(frozen=True)
class Pull:
    """What an objective asks for.

    Attributes:
        v: Direction of the tangent pass, one array per parameter; None for no tangent pass.
        direct: Gradient to subtract before projecting, or None.
        whole: Whether the projected direction is itself the longest useful move.
        cost: Compute used to find it, in gradients.
    """

    v: Vector | None
    direct: Vector | None = None
    whole: bool = False
    cost: float = 0.0


def mean_gradient(graph: LayerGraph, batch: str, shift: Dense | None) -> tuple[Array, Dense]:
    """Return the joint loss of a batch at ``w - shift``, and its gradient, over all replicas."""
    loss, gradients = graph.gradient(batch, shift)
    mean = graph.collective.mean
    return mean(loss), [mean(g) for g in gradients]


def _decrease(graph: LayerGraph, gradients: Dense) -> Pull:
    """Return ``v = D g``: the optimizer's step without what it would do at zero gradient."""
    zero = [None if g is None else ar.namespace(g).zeros_like(g) for g in gradients]
    step, drift = graph.optimizer_step(gradients), graph.optimizer_step(zero)
    return Pull(ar.combine(step, -1.0, drift))


def _look_ahead(graph: LayerGraph, gradients: Dense) -> Pull:
    step = graph.optimizer_step(gradients)
    _, direct = mean_gradient(graph, "others", step)
    probe = PROBE * ar.joint_norm(gradients) / ar.positive(ar.joint_norm(direct))
    probe = ar.namespace(probe).where(probe > 0, probe, ar.namespace(probe).full_like(probe, PROBE))
    bent = graph.optimizer_step(ar.combine(gradients, probe, direct))
    v = [None if a is None else ar.scaled(1 / probe, a) for a in ar.combine(bent, -1.0, step)]
    return Pull(v, direct, cost=GRADIENT)


def _others(graph: LayerGraph, gradients: Dense) -> Pull:
    step = graph.optimizer_step(gradients)
    return Pull(None, mean_gradient(graph, "others", step)[1], cost=GRADIENT)


def _sharpness(graph: LayerGraph, gradients: Dense) -> Pull:
    step = graph.optimizer_step(gradients)
    _, after = mean_gradient(graph, "batch", step)
    direct = ar.combine(after, -1.0, gradients)
    return Pull([None if u is None else -u for u in step], direct, cost=GRADIENT)


def _weight_norm(graph: LayerGraph, gradients: Dense) -> Pull:  # noqa: ARG001
    return Pull(None, graph.weights(), whole=True)


OBJECTIVES: dict[str, Callable[[LayerGraph, Dense], Pull]] = {  # but "grad_norm", which is v = g
    "decrease": _decrease,
    "look_ahead": _look_ahead,
    "others": _others,
    "sharpness": _sharpness,
    "weight_norm": _weight_norm,
}

JUDGED = ("look_ahead", "others")
"""Objectives that look at what the optimizer's step does, and so bound themselves."""


def readable(objective: object, graph: LayerGraph) -> bool:
    """Whether a graph knows what an objective reads."""
    if objective in JUDGED and "others" not in graph.batches:
        return False
    return graph.has_optimizer or objective in ("grad_norm", "weight_norm") or callable(objective)


def pull(objective: str | Callable[[Dense], Dense], graph: LayerGraph, gradients: Vector) -> Pull:
    """Return what an objective, given by name or as a function from g to v, asks for.

    Raises:
        ValueError: If the network lacks what the objective reads, or a custom objective does not
            return one finite array per parameter.
    """
    if objective == "grad_norm":
        return Pull(gradients)
    formed = [ar.dense(a) for a in gradients]
    if not isinstance(objective, str):
        v = objective(formed)
        if (fault := _fault(v, formed)) is not None:
            msg = f"the objective returned {fault}; allowed: {len(formed)} finite arrays, one per "
            msg += "parameter, or None for no part"
            raise ValueError(msg)
        return Pull(v)
    if objective in JUDGED and graph.has_optimizer and "others" not in graph.batches:
        msg = f"the objective {objective!r} needs a batch of other samples: pass others="
        raise ValueError(msg)
    return OBJECTIVES[objective](graph, formed)


def _fault(v: object, gradients: Dense) -> str | None:
    """Return what is wrong with the result of a custom objective, if anything is."""
    if not isinstance(v, list | tuple):
        shape = f" of shape {tuple(v.shape)}" if hasattr(v, "shape") else ""
        return type(v).__name__ + shape
    if len(v) != len(gradients):
        return f"{len(v)} arrays"
    if all(a is None for a in v):
        return "None for every parameter"
    for index, (mine, theirs) in enumerate(zip(v, gradients, strict=True)):
        if mine is None:
            continue
        if not (hasattr(mine, "shape") and hasattr(mine, "dtype")):
            return f"a {type(mine).__name__} for parameter {index}"
        if theirs is not None and mine.shape != (shape := theirs.shape):
            return f"shape {tuple(mine.shape)} for parameter {index} of shape {tuple(shape)}"
        if ar.known(~ar.namespace(mine).all(ar.namespace(mine).isfinite(mine))):
            return f"an array that is not finite (NaN or infinity) for parameter {index}"
    return None
