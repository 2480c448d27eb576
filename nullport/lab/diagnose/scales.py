"""Scales of signals and gradients, map by map, from one gradient.

For every linear map ``Y = X W^T`` (samples, out) in the order of the forward pass, with the
cotangent ``delta`` of its outputs,

    rms(X),  rms(Y),  ||delta||,  s = ||delta_l|| / ||delta_{l-1}||,  rms(W) sqrt(in).

With the initialisation of He et al. (2015), ``rms(W) sqrt(in) = sqrt(2)`` under ReLU, signals and
cotangents keep their size and ``s`` is about 1. Where ``s`` is 2.4 in ten layers, 6,000 times less
arrives below than above, and no rate suits both ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from nullport import _arrays as ar
from nullport._objective import HEALTHY, cotangents, shrinkage, vanishing
from nullport._report import VANISHED
from nullport._verdict import ARMIJO
from nullport.network import LayerGraph, Linearization, Site, Use

State = Literal["stuck", "training", "exploding"]

HE = 2**0.5
"""``rms(W) sqrt(in)`` of He's initialisation for ReLU."""

EXPLODED = 100.0
"""Growth of a cotangent on its way down from which on gradients count as exploding."""

RATES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Factors of the learning rate that are tried, where the optimizer is known."""


@dataclass(frozen=True)
class Scale:
    """The scales of one linear map.

    Attributes:
        name: Name of its weight.
        kind: Name of the operation.
        inputs: Root mean square of its inputs, over the rows that the map sees.
        outputs: Root mean square of its outputs, without a bias.
        cotangent: Norm of the gradient of the loss by its outputs.
        shrinkage: By how much that norm shrinks on its way down through the map, to the map before.
        weight: Root mean square of its weight, times the root of its inputs' number.
        lacks: Factor that the weight is too small by, where it is above 1; too large, where below.
    """

    name: str
    kind: str
    inputs: float
    outputs: float
    cotangent: float
    shrinkage: float
    weight: float
    lacks: float


@dataclass(frozen=True)
class Diagnosis:
    """What one gradient tells of a network.

    Attributes:
        loss: The loss.
        state: ``"stuck"`` where gradients vanish on their way down, ``"exploding"`` where they
            grow by more than ``EXPLODED``, else ``"training"``.
        factor: By how much they vanish, or grow; while training, by how much they shrink.
        maps: Every linear map, in the order of the forward pass.
        rate: The largest of ``RATES`` by which the optimizer's next step may be lengthened and
            still gain half of what its slope promises; 0 if none, None with no optimizer.
    """

    loss: float
    state: State
    factor: float
    maps: tuple[Scale, ...]
    rate: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, maps as dicts."""
        return asdict(self)


def diagnose(graph: LayerGraph) -> Diagnosis:
    """Measure the scales of a network's signals and gradients; nothing is moved.

    Args:
        graph: The network, its loss and a batch; not traced.

    Raises:
        ValueError: If the loss is not finite, or no weight is used by a recognised linear map.
    """
    with graph.exact():
        lin = graph.linearize()
        loss = float(graph.collective.mean(lin.loss))
        if not math.isfinite(loss):
            msg = f"the closure returned loss {loss}; a diagnosis needs a finite loss"
            raise ValueError(msg)
        maps = _maps(graph, lin)
        if not maps:
            msg = "no weight of the model is used by a recognised linear map"
            raise ValueError(msg)
        state, factor = _state(maps, float(vanishing(lin.sites, graph.collective)))
        return Diagnosis(loss, state, factor, maps, _rate(graph, lin))


def _maps(graph: LayerGraph, lin: Linearization) -> tuple[Scale, ...]:
    """Return the scales of every site that is the use of a weight."""
    uses: dict[int, Use] = {}
    for use in lin.uses:
        if use.site is not None and use.role == "weight" and use.layout is not None:
            uses.setdefault(use.site, use)
    if not uses:
        return ()
    norms = [float(x) for x in cotangents(lin.sites, graph.collective)]
    shrinks = [float(x) for x in shrinkage(lin.sites, graph.collective)]
    return tuple(_scale(graph, lin.sites, i, uses[i], norms[i], shrinks[i]) for i in sorted(uses))


def _scale(
    graph: LayerGraph, sites: Sequence[Site], i: int, use: Use, norm: float, shrinks: float
) -> Scale:
    site, layout = sites[i], use.layout
    assert layout is not None  # asked before
    weight = graph.read(use.parameter, graph.weights()[use.parameter], layout)
    scale = float(ar.norm(ar.widen(weight))) / layout.size**0.5 * layout.shape[-1] ** 0.5
    count = max(1, site.samples * prod(layout.shape[:-1]))
    lacks = shrinks
    if i and site.samples != sites[i - 1].samples and scale:
        lacks = min(shrinks, HE / scale)  # pooling between the two may have shrunk it too
    return Scale(
        name=graph.parameters[use.parameter].name,
        kind=site.kind,
        inputs=_rms(site),
        outputs=float(site.output_norm) / count**0.5,
        cotangent=norm,
        shrinkage=shrinks,
        weight=scale,
        lacks=lacks,
    )


def _rms(site: Site) -> float:
    """Return the root mean square of a map's inputs, over the rows that it sees."""
    squares, count = 0.0, 0
    for rows in site.rows():
        squares += float(ar.norm(ar.widen(rows))) ** 2
        count += prod(rows.shape)
    return math.sqrt(squares / max(1, count))


def _state(maps: Sequence[Scale], shrinks: float) -> tuple[State, float]:
    """Return the state, and the factor between the top and the lower half of the network.

    Args:
        maps: All maps.
        shrinks: By how much the gradient shrinks on its way down, pooling left out.
    """
    norms = [one.cotangent for one in maps]
    top, most, lower = norms[-1], max(norms), max(norms[: max(1, len(norms) // 2)])
    if not all(map(math.isfinite, norms)):
        return "exploding", math.inf
    if top and not lower:  # dead units: nothing comes through
        return "stuck", math.inf
    if shrinks > VANISHED:
        return "stuck", shrinks
    if top and most > EXPLODED * top:
        return "exploding", most / top
    return "training", shrinks


def _rate(graph: LayerGraph, lin: Linearization) -> float | None:
    """Return by how much the optimizer's step may be lengthened, by the Armijo condition."""
    if not graph.has_optimizer:
        return None
    mean = graph.collective.mean
    gradients = [ar.dense(mean(g)) for g in lin.gradients]
    step = graph.optimizer_step(gradients)
    loss, promised = float(mean(lin.loss)), float(ar.inner(gradients, step))
    rounding = 4 * ar.eps(lin.loss) * abs(loss)  # all that can be seen of a tiny step
    found = 0.0
    for factor in RATES:
        longer = [None if u is None else ar.scaled(factor, u) for u in step]
        gained = loss - float(mean(graph.loss(shift=longer)))
        if not gained >= ARMIJO * factor * promised - rounding:
            break
        found = factor
    return found


def unhealthy(diagnosis: Diagnosis) -> list[Scale]:
    """Return the maps whose weights are too small, or where gradients explode, too large."""
    if diagnosis.state == "exploding":
        return [one for one in diagnosis.maps if 0 < one.lacks < 1 / HEALTHY]
    return [one for one in diagnosis.maps if one.lacks > HEALTHY]
