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
- ``amplify``: ``+||W||^2 / 2`` up to a length: ``W' = W + (s - 1) W P`` gives the part of a weight
  that the data does not see the scale ``s`` that it lacks. ``renew`` puts fresh entries of that
  scale in its place, ``W' = W + (R - W) P``. For networks that are stuck; what they lack is read
  from a gradient. On its way down through a layer of the scale of He et al. (2015) a cotangent
  keeps its norm, whatever the widths and whichever activation lies between. Where it shrinks,

      s = ||delta_l|| / ||delta_{l-1}||,      delta_{l-1} that of the linear map before,

  the weights are too small by that factor. Over many layers the factors multiply, until lower
  layers get no gradient and there is no rate that suits both ends.

The optimizer's step is read from the user's own optimizer, whose state is left as it was; its
derivative is a difference of two such runs, symmetric for every elementwise rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import prod
from typing import TypeAlias

import numpy as np

from nullport import _arrays as ar
from nullport._arrays import Array, Collective, Dense, Vector
from nullport._capture import Layer
from nullport._config import Objective, TeleportConfig
from nullport._report import VANISHED
from nullport.network import GRADIENT, Change, LayerGraph, Site

PROBE = 1e-2
"""Relative length of the difference that differentiates the optimizer's step."""

SATURATES = 100.0
"""Factor by which a gradient is lengthened to see whether an optimizer's step follows it."""

RESCALING = ("amplify", "renew")
"""Objectives with a length of their own. Other samples need not gain by them at once."""

UNSEEN = 0.01
"""Share of a layer's input energy that the null space of these may hold. On a plateau the inputs of
deep layers are nearly one direction, and this frees nearly all of a weight; the exact null space
frees too little of it."""

HEALTHY, MOST = 1.5, 16.0
"""Shrinkage of a cotangent in one layer up to which its weights are left alone, and the largest
factor by which they are made up for it."""


@dataclass(frozen=True)
class Pull:
    """What an objective asks for.

    Attributes:
        v: Direction of the tangent pass, one array per parameter; None for no tangent pass.
        direct: Gradient to subtract before projecting, or None.
        whole: How often the projected direction of each layer is added at most, where it is itself
            a move of the right length; None for a direction only.
        cost: Compute used to find it, in gradients.
    """

    v: Vector | None
    direct: Vector | None = None
    whole: Sequence[Array] | None = None
    cost: float = 0.0


Place: TypeAlias = "tuple[Sequence[Layer], Sequence[Site]]"
"""The layers that may move, and all sites of the network."""

Ahead: TypeAlias = "Callable[[], Dense]"
"""The optimizer's step, taken when it is first asked for."""


def mean_gradient(graph: LayerGraph, batch: str, shift: Dense | None) -> tuple[Array, Dense]:
    """Return the joint loss of a batch at ``w - shift``, and its gradient, over all replicas."""
    loss, gradients = graph.gradient(batch, shift)
    together = graph.collective
    joint = together.gradients(gradients, graph.weights())
    return together.mean(loss), [ar.dense(g) for g in joint]


def _decrease(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    """Return ``v = D g``: the optimizer's step without what it would do at zero gradient."""
    zero = [None if g is None else ar.namespace(g).zeros_like(g) for g in gradients]
    return Pull(ar.combine(step(), -1.0, graph.optimizer_step(zero)))


def _look_ahead(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    _, direct = mean_gradient(graph, "others", step())
    probe = PROBE * ar.joint_norm(gradients) / ar.positive(ar.joint_norm(direct))
    probe = ar.namespace(probe).where(probe > 0, probe, ar.namespace(probe).full_like(probe, PROBE))
    bent = graph.optimizer_step(ar.combine(gradients, probe, direct))
    return Pull(ar.combine(bent, -1.0, step(), 1 / probe), direct, cost=GRADIENT)


def _others(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    return Pull(None, mean_gradient(graph, "others", step())[1], cost=GRADIENT)


def _sharpness(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    _, after = mean_gradient(graph, "batch", step())
    direct = ar.combine(after, -1.0, gradients)
    return Pull([None if u is None else -u for u in step()], direct, cost=GRADIENT)


def _weight_norm(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    return Pull(None, graph.weights(), whole=[0 * x.weight_norm + 1 for x in at[0]])


def _amplify(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    layers, sites = at
    own = _lacking(layers, sites, graph.collective)
    whole = [own_scale - 1 for own_scale in own]
    return Pull(None, [-w for w in graph.weights()], whole=whole)


def _renew(graph: LayerGraph, gradients: Dense, at: Place, step: Ahead) -> Pull:  # noqa: ARG001
    """Return ``direct = W - R``; entries of ``R`` have the size of those of ``W``, times ``s``."""
    layers, sites = at
    scales, left = _lacking(layers, sites, graph.collective), list(graph.weights())
    for layer, s in zip(layers, scales, strict=True):
        block, (index, layout) = layer.block, (layer.block.parameter, layer.block.layout)
        own = ar.widen(graph.read(index, left[index], layout))
        fresh = _normal(own, index) * (s * ar.norm(own) / prod(layout.shape) ** 0.5)
        left[index] = Change(index, block.layout, -fresh).added_to(ar.whole(left[index]))
    return Pull(None, left, whole=[0 * s + 1 for s in scales])


def _normal(like: Array, seed: int) -> Array:
    """Return normal numbers in the shape of ``like``; no random state is touched."""
    xp, found = ar.namespace(like), np.random.default_rng(seed).standard_normal(tuple(like.shape))
    return xp.asarray(found, dtype=like.dtype, device=ar.place(like))


OBJECTIVES: dict[str, Callable[..., Pull]] = {  # grad_norm is v = g
    "decrease": _decrease,
    "look_ahead": _look_ahead,
    "others": _others,
    "sharpness": _sharpness,
    "weight_norm": _weight_norm,
    "amplify": _amplify,
    "renew": _renew,
}

JUDGED = ("look_ahead", "others")
"""Objectives that look at what the optimizer's step does, and so bound themselves."""


def readable(objective: object, graph: LayerGraph) -> bool:
    """Whether a graph knows what an objective reads."""
    if objective in JUDGED and "others" not in graph.batches:
        return False
    return graph.has_optimizer or objective not in (*JUDGED, "decrease", "sharpness")


def pull(
    objective: str | Objective,
    graph: LayerGraph,
    gradients: Vector,
    at: Place = ((), ()),
    step: Dense | None = None,
) -> Pull:
    """Return what an objective, given by name or as a function from g to v, asks for.

    Args:
        objective: The objective.
        graph: The network.
        gradients: Its gradient, one entry per parameter.
        at: The layers, and the sites of this gradient.
        step: The optimizer's step with this gradient, where that is known already.

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
    known = cache(lambda: graph.optimizer_step(formed) if step is None else step)
    return OBJECTIVES[objective](graph, formed, at, known)


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


def _rows(sites: Sequence[Site], together: Collective) -> list[int]:
    """Return the rows of each site on all replicas; none if these ran unlike maps."""
    every = together.gather([(site.samples, site.cotangent is None) for site in sites])
    if len({tuple(none for _, none in own) for own in every}) > 1:
        return []
    return [sum(n for n, _ in own) for own in zip(*every, strict=True)]


def cotangents(sites: Sequence[Site], together: Collective) -> list[Array]:
    """Return the norm of the cotangent of each site, 0-d; that of the one before if it has none."""
    own, last = [], 0
    kept = []  # where nothing comes down through a site, that of the one before counts
    for i, site in enumerate(sites):
        last = i if site.cotangent is not None else last
        kept.append(last)
        delta = site.cotangent
        own.append(0 * site.output_norm if delta is None else ar.norm(ar.widen(delta)))
    joint = together.norm(ar.namespace(own[0]).stack(own))
    return [joint[i] for i in kept]


def shrinkage(sites: Sequence[Site], together: Collective) -> list[Array]:
    """Return by how much the cotangent shrinks on its way down through each site, 0-d each.

    Maps that share their inputs, as queries, keys and values do, count as one: what goes down
    through them is their sum. It is 1 for the first, which has none before it.
    """
    norms = cotangents(sites, together)
    xp, before, total = ar.namespace(norms[0]), [0 * norms[0]], [norms[0]]
    same = _share_inputs(sites, together)
    for alike, size in zip(same, norms[1:], strict=True):
        before.append(xp.where(alike, before[-1], total[-1]))
        total.append(xp.where(alike, ar.joined([total[-1], size]), size))
    for i in reversed(range(len(same))):  # those that came first have the sum of all, too
        total[i] = xp.where(same[i], total[i + 1], total[i])
    pairs = zip(total, before, strict=True)
    return [xp.where(b > 0, a / ar.positive(b), xp.ones_like(a)) for a, b in pairs]


def _share_inputs(sites: Sequence[Site], together: Collective) -> list[Array]:
    """Whether each site has the inputs of the one before: of equal shapes and norms, 0-d bool.

    On every replica: one without samples cannot tell.
    """
    xp, unlike = ar.namespace(sites[0].output_norm), []
    for a, b in pairwise(sites):
        if tuple(a.inputs.shape) != tuple(b.inputs.shape):
            unlike.append(0 * b.output_norm + 1)
        else:
            differ = ar.norm(ar.widen(a.inputs)) != ar.norm(ar.widen(b.inputs))
            unlike.append(xp.where(differ, xp.ones_like(b.output_norm), 0 * b.output_norm))
    if not unlike:
        return []
    joint = together.sum(xp.stack(unlike))
    return [joint[i] == 0 for i in range(len(unlike))]


def vanishing(sites: Sequence[Site], together: Collective) -> Array:
    """Return by how much the gradient shrinks on its way down, 0-d; at ``VANISHED`` it is lost.

    The cotangent of the last map, relative to the largest of the lower half: where there are
    residual connections, gradients go down beside the maps that make them small. What a mean over
    rows takes away, as in pooling between two maps, is left out. It is 1 where replicas ran unlike
    maps, which cannot be compared.
    """
    rows = _rows(sites, together)
    if not rows:
        return 0 * sites[0].output_norm + 1
    norms, pooled = cotangents(sites, together), 1.0
    for i, (n, m) in enumerate(pairwise(rows), start=1):
        pooled *= max(1.0, n / max(m, 1)) ** 0.5
        norms[i] = norms[i] / pooled
    xp, lower = ar.namespace(norms[0]), norms[: max(1, len(norms) // 2)]
    largest = xp.max(xp.stack(lower))
    return xp.where(largest > 0, norms[-1] / ar.positive(largest), xp.ones_like(largest))


def _lacking(layers: Sequence[Layer], sites: Sequence[Site], together: Collective) -> list[Array]:
    """Return the scale that each layer lacks, 0-d each: in [1, MOST], and 1 where it is healthy.

    Where replicas ran unlike maps nothing can be told, and all are 1.
    """
    rows = _rows(sites, together)
    if not rows:
        return [0 * layer.weight_norm + 1 for layer in layers]
    found, scales = shrinkage(sites, together), []
    xp = ar.namespace(found[0])
    for layer in layers:
        block = layer.block
        s = xp.max(xp.stack([found[i] for i in block.sites]))
        first = block.sites[0]
        if first and rows[first] != rows[first - 1]:
            # Pooling between the two may have shrunk it too: no more than He's scale.
            rms = layer.weight_norm / block.layout.size**0.5
            s = xp.minimum(s, (2 / block.features) ** 0.5 / ar.positive(rms))
        scales.append(xp.where(s > HEALTHY, xp.clip(s, 1.0, MOST), xp.ones_like(s)))
    return scales


def settled(config: TeleportConfig, objective: str | Objective) -> TeleportConfig:
    """Return settings for an objective: one that rescales has a null space of its own."""
    if objective not in RESCALING:
        return config
    if config.radius == "auto":
        config = replace(config, radius=MOST)
    if config.projection == "budget":
        config = replace(config, projection="threshold", threshold=UNSEEN)
    return replace(config, steps=1)


def chosen(objective: str | Objective, graph: LayerGraph, shrunk: Array) -> str | Objective:
    """Return what ``"auto"`` stands for where gradients shrink by so much on their way down (0-d).

    Where nothing can be asked, as under jit, a network counts as one that trains.
    """
    if objective != "auto":
        return objective
    if not (graph.has_optimizer and "others" in graph.batches):
        return "grad_norm"
    return "amplify" if ar.known(shrunk > VANISHED) else "look_ahead"


def follows(graph: LayerGraph, gradients: Dense) -> Array:
    """Whether the optimizer's step grows with the gradient, 0-d bool.

    Where it divides by the gradient's size, as Adam does, or is clipped to a length, a gradient has
    little to gain by a better place: looking ahead ended worse in a well-initialised network, at
    each of four rates (``docs/benchmarks/amplify.md``). A few parameters tell, with a gradient as
    long as that of all.
    """
    few = _smallest(gradients) if graph.partial_steps else gradients
    size = ar.joint_norm(few)
    factor = ar.joint_norm(gradients) / ar.positive(size)

    def step(times: float) -> Dense:
        return graph.optimizer_step(
            [None if g is None else ar.scaled(times * factor, g) for g in few]
        )

    still = step(0.0)
    near, far = (ar.joint_norm(ar.combine(step(t), -1.0, still)) for t in (1.0, SATURATES))
    return far > 0.5 * SATURATES * near


def _smallest(gradients: Dense) -> Dense:
    """Return the gradient of the smallest parameter of each number of axes, None for all others.

    Rules for vectors and for matrices may differ. A gradient of zero tells nothing: with nothing
    else, all are returned.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for i, g in enumerate(gradients):
        if g is not None and not ar.known(ar.norm(ar.widen(g)) == 0):
            sizes[g.ndim] = min(sizes.get(g.ndim, (prod(g.shape), i)), (prod(g.shape), i))
    chosen_ones = {i for _, i in sizes.values()}
    if not chosen_ones:
        return gradients
    return [g if i in chosen_ones else None for i, g in enumerate(gradients)]
