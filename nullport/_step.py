"""How far each layer goes in a step, and what that does to its outputs.

    reach = min(radius ||W||,  budget / ||X N^T|| ||N||),      dW = N reach / ||N||,

for the direction ``N`` that was found for it; 0 where it cannot move. The objective is unbounded on
the level set and gains multiply with depth: moving L layers by a relative radius rho each raises
the gradient norm like ``(1 + c rho)^L``. So the radius is shared out over them (:func:`radius_of`).

The certificate bounds the output change ``||dW X^T||`` of the weights as they are stored:

    what N lets through + what rounding adds to N + what rounding adds as W + dW is stored.

The first is ``||N X^T||`` measured on all rows, or where the null space is exact and known without
squaring, its largest free singular value times ``||N||``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import sqrt
from operator import or_

from nullport import _arrays as ar
from nullport._arrays import Array, LowRank, Matrix
from nullport._capture import Layer
from nullport._config import TeleportConfig
from nullport._nullspace import NullSpace, Pinned
from nullport._report import Code, Hold
from nullport._sites import Layout
from nullport.network import Change, Collective, LayerGraph, Site

DEPTH_RADIUS, RADIUS = 1.3, 0.3
"""Sum of relative radii over all layers, and the largest for one of them. Residual networks of 6 to
66 linear maps then let the gradient norm grow alike, a few times, where a radius of .1 for each has
it grow a thousandfold at 66 (``tests/torch_adapter/test_depth.py``)."""

SUMS = 64
"""Rounding of a norm, in spacings of its dtype: the sum of many squares."""

SAMPLED_ROWS = 16
"""Rows on which the output change is measured where the null space is exact."""


def radius_of(
    config: TeleportConfig, layers: int, given: float | Array | None = None
) -> float | Array:
    """Return the relative length of the whole move for each of so many layers.

    What is ``given`` holds where the settings leave it open.
    """
    if config.radius != "auto":
        return config.radius
    return given if given is not None else min(RADIUS, DEPTH_RADIUS / max(layers, 1))


@dataclass(frozen=True)
class Found:
    """What was found for a layer: its null space, a direction, and its effect per unit of factor.

    Attributes:
        free: Number of free directions, 0-d.
        empty: Whether there are none, 0-d bool.
        inputs: ``||X||``, 0-d.
        delta: ``N`` (..., out, features), possibly in factors; a bias is its last column. None if
            nothing reached the layer.
        size: ``||N||``, 0-d.
        share: What the projection left, relative to what it was given, 0-d.
        change: ``||N X^T||``, measured, 0-d.
        bound: Bound on it, rounding included, 0-d.
        sample: A few rows ``X`` of every site, (..., m, features) each.
    """

    free: Array
    empty: Array
    inputs: Array
    delta: Matrix | None
    size: Array
    share: Array
    change: Array
    bound: Array
    sample: Sequence[Array] = ()

    def obstacles(self, layer: Layer) -> dict[Code, Array]:
        """Return causes for which the layer cannot follow the direction (0-d bool each)."""
        return {
            Hold.HIDDEN: layer.hidden,
            Hold.EMPTY: self.empty,
            Hold.STILL: self.size == 0,
            Hold.BROKEN: ~ar.namespace(self.size).isfinite(self.size + self.bound),
            Hold.SPANNED: self.share < 1e3 * ar.eps(self.size),
        }


def effect(
    delta: Matrix | None,
    share: Array | float,
    layer: Layer,
    space: NullSpace,
    sites: Sequence[Site],
    together: Collective,
    *,
    size: Array | None = None,
) -> Found:
    """Measure what a direction of a layer does to its outputs; arguments as in :class:`Found`.

    The direction's ``size`` is measured unless it is given.
    """
    zero, known = 0 * space.size, (space.free, space.empty, space.size)
    if delta is None:
        return Found(*known, None, zero, zero, zero, zero)
    if isinstance(delta, LowRank):
        size, spread = delta.norms()
    else:
        size = spread = ar.norm(delta) if size is None else size
    sample = _sampled(layer, sites)
    if layer.exact and (space.resolved or ar.known(space.empty)):
        change, bound = _seen(delta, sample, space.size, together), space.leak * size
    else:
        change = together.norm(output_change(layer, sites, ar.dense(delta)))
        # What is lost to numbers that are too small to be held, in every term of the sum.
        layout = layer.block.layout
        terms = layer.block.features * sqrt(layer.samples * layout.size / layout.shape[-1])
        bound = change * (1 + SUMS * ar.eps(size)) + ar.tiny(size) * ar.eps(size) * terms
    bound = bound + space.rounding * spread
    return Found(*known, delta, size, share + zero, change, bound, sample)


def with_pinned(
    found: Found, layer: Layer, outer: Pinned, sites: Sequence[Site], together: Collective
) -> Found:
    """Return what was found, and what the direction does to outputs of the transposed weight.

    Args:
        found: What was found, its direction projected on both sides.
        layer: The layer.
        outer: Its outputs that have to stay.
        sites: The uses of the transposed weight.
        together: Adds over replicas.
    """
    xp, found = ar.namespace(found.size), replace(found, empty=found.empty | outer.empty)
    if found.delta is None or outer.space is None:
        return found
    weight = ar.dense(_parts(layer, found.delta)[0][2])
    parts = [site.apply(xp.matrix_transpose(weight)) for site in sites]
    change = together.norm(ar.joint_norm(parts))
    bound = change * (1 + SUMS * ar.eps(found.size)) + outer.rounding * found.size
    return replace(
        found,
        inputs=ar.joined([found.inputs, outer.space.size]),
        change=ar.joined([found.change, change]),
        bound=ar.joined([found.bound, bound]),
    )


def _seen(delta: Matrix, sample: Sequence[Array], inputs: Array, together: Collective) -> Array:
    """Return ``||X delta^T||`` as sampled rows of ``X``, of norm ``inputs``, show it, 0-d."""
    rows = together.norm(ar.joint_norm(sample))
    shown = together.norm(ar.joint_norm([ar.outputs(delta, x) for x in sample]))
    return inputs * (shown / ar.positive(rows))


def _sampled(layer: Layer, sites: Sequence[Site]) -> list[Array]:
    """Return a few rows of every site; copies, for a view would hold on to all rows."""
    every, bias = max(1, layer.samples // SAMPLED_ROWS), layer.block.bias is not None
    rows = (ar.widen(chunk) for site in sites for chunk in site.rows(every))
    return [ar.with_column(x, 1.0) if bias else ar.namespace(x).asarray(x, copy=True) for x in rows]


def output_change(layer: Layer, sites: Sequence[Site], delta: Array) -> Array:
    """Return ``||X N^T||`` over all sites of a layer for ``N`` (..., out, features), 0-d."""
    parts = [part for _, _, part in _parts(layer, delta)]
    return ar.joint_norm([site.apply(*parts) for site in sites])


@dataclass(frozen=True)
class Moved:
    """How far a layer has gone.

    Attributes:
        length: ``||dW||``, 0-d.
        bound: Bound on ``||dW X^T||``, without rounding as weights are stored, 0-d.
        change: The same, measured, 0-d.
        stored: Bound on what storing the weights adds, 0-d.
        shown: What it adds as the sampled rows show it, 0-d.
        again: Bound on what storing them once more would add, 0-d.
    """

    length: Array
    bound: Array
    change: Array
    stored: Array
    shown: Array
    again: Array

    def __add__(self, other: Moved) -> Moved:
        """Return the sum of two steps."""
        xp = ar.namespace(self.again)
        return Moved(
            self.length + other.length,
            self.bound + other.bound,
            self.change + other.change,
            self.stored + other.stored,
            self.shown + other.shown,
            xp.maximum(self.again, other.again),
        )

    def shortened(self, share: Array | float) -> Moved:
        """Return the move of which only a share is kept, which stores the weights once more."""
        length, bound, change = share * self.length, share * self.bound, share * self.change
        stored, shown = share * self.stored + self.again, 2**0.5 * self.shown
        return Moved(length, bound, change, stored, shown, self.again)

    @property
    def certificate(self) -> Array:
        """Bound on ``||dW X^T||`` of the weights as they are stored, 0-d."""
        return self.bound + self.stored

    @property
    def measured(self) -> Array:
        """The same, measured, 0-d: rounding and move are independent."""
        return ar.joined([self.change, self.shown])


def factors_of(
    layers: Sequence[Layer],
    found: Sequence[Found],
    reach: float | Array,
    config: TeleportConfig,
    *,
    whole: Sequence[Array] | None,
) -> tuple[Array, Array]:
    """Return the factor of every direction and the length of every step, shape (layers,) each.

    Steps have the length ``reach`` relative to the weights, and take a direction at most ``whole``
    times, where that is known. Scalars of all layers are handled as one array: a step costs a few
    small operations per network instead of a few per layer.
    """
    xp = ar.namespace(found[0].size)
    size = xp.stack([f.size for f in found])

    def cast(x: Array) -> Array:
        return xp.astype(x, size.dtype, copy=False)

    pairs = list(zip(layers, found, strict=True))
    held = xp.stack([reduce(or_, f.obstacles(x).values()) for x, f in pairs])
    size = xp.where(held, xp.ones_like(size), size)
    weights = xp.stack([cast(layer.weight_norm) for layer in layers])
    length = xp.where(held, xp.zeros_like(size), reach * weights)
    if whole is not None:
        most = xp.stack([cast(times) for times in whole]) * size
        length = xp.minimum(length, xp.where(held, length, most))
    if any(layer.tight for layer in layers):
        # The space was made from a part of the rows; what it does to all of them was measured.
        allowed = [
            cast(config.budget * x.output_norm / config.steps) / ar.positive(cast(f.change))
            if x.tight
            else xp.full_like(f.size, xp.inf)
            for x, f in pairs
        ]
        length = xp.minimum(length, xp.stack(allowed) * size)
    return length / size, length


def step_of(
    layer: Layer, found: Found, factor: Array, length: Array, graph: LayerGraph
) -> tuple[Moved, list[Change]]:
    """Return how far a step takes a layer, and the changes that make it."""
    assert found.delta is not None  # the caller has asked
    xp, delta = ar.namespace(found.size), graph.unpack(found.delta)
    right = delta.right if isinstance(delta, LowRank) else delta
    factor = xp.astype(factor, right.dtype, copy=False)
    if ar.traced(factor):
        right = xp.where(factor > 0, right * factor, xp.zeros_like(factor))
    else:
        right = right * factor if float(factor) > 0 else xp.zeros_like(right)
    delta = LowRank(delta.left, right) if isinstance(delta, LowRank) else right
    spacing = max(ar.eps(layer.weight_norm), layer.narrow)
    again = spacing / 2 * (layer.weight_norm + length) * found.inputs
    stored, shown = again, 0 * length
    if layer.narrow:
        delta, lost = _as_stored(layer, ar.dense(delta), graph)
        stored = ar.norm(lost) * found.inputs
        shown = _seen(lost, found.sample, found.inputs, graph.collective)
    moving = xp.astype(length > 0, length.dtype)
    rounding = (moving * x for x in (stored, shown, again))
    moved = Moved(length, found.bound * factor, found.change * factor, *rounding)
    return moved, [Change(*part) for part in _parts(layer, delta)]


def _as_stored(layer: Layer, delta: Array, graph: LayerGraph) -> tuple[Array, Array]:
    """Return the change that weights of a narrow dtype make when they are rounded, and the rest."""
    made, weights, xp = [], graph.weights(), ar.namespace(delta)
    for index, layout, part in _parts(layer, delta):
        old = graph.read(index, weights[index], layout)
        new = xp.astype(ar.widen(old) + part, old.dtype)
        made.append(ar.widen(new) - ar.widen(old))
    whole = made[0] if len(made) == 1 else xp.concat([made[0], made[1][..., None]], axis=-1)
    return whole, whole - delta


def _parts(layer: Layer, delta: Matrix) -> list[tuple[int, Layout, Matrix]]:
    """Return the parts of a direction that belong to the weight and to its bias."""
    parts: list[Matrix] = [delta]
    if layer.block.bias is not None:
        if isinstance(delta, LowRank):
            column = LowRank(delta.left, delta.right[..., -1:]).dense()
            parts = [LowRank(delta.left, delta.right[..., :-1]), column[..., 0]]
        else:
            parts = [delta[..., :-1], delta[..., -1]]
    return [(*place, part) for place, part in zip(layer.block.parts, parts, strict=True)]
