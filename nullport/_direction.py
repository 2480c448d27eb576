"""The projected teleport gradient, without second derivatives.

The gradient of a weight is ``g_W = delta^T X``. Along a direction ``v`` over all parameters,

    d/de (delta^T X) = deltadot^T X + delta^T Xdot,

and the gradient of ``phi(g)`` over ``W`` is that derivative along ``v = dphi/dg``. The rows of the
first term lie in the row space of ``X``, so the projection ``P`` onto the null space removes it:

    P grad_W phi = (delta^T Xdot) P.

One gradient (g, X, delta), one tangent pass (every Xdot) and one weight-gradient kernel per layer;
no Hessian-vector product, no double backward. With few samples the product is never formed:
``(delta^T Xdot) P = delta^T (Xdot P)`` stays in factors until it is added to the weight.

A layer is dealt with as its tangent arrives: null space, direction, effect on the outputs. After
that its inputs and cotangents are freed, so that they and the null spaces are never all held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nullport._arrays import (
    Array,
    LowRank,
    Matrix,
    Vector,
    dense,
    namespace,
    widen,
    with_column,
)
from nullport._capture import Block, Layer
from nullport._config import TeleportConfig
from nullport._nullspace import NullSpace, null_space
from nullport._step import Found, effect
from nullport.network import Collective, DenseSite, LayerGraph, Linearization, Site


@dataclass
class _Sum:
    """What has arrived for one layer: factors, or their formed product; norms before and after."""

    left: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    formed: Array | None = None
    kept: Array | float = 0.0
    total: Array | float = 0.0

    def add(self, part: Array) -> None:
        """Add a site's formed part."""
        self.formed = part if self.formed is None else self.formed + part


class Directions:
    """Collects ``N = (sum over sites of delta^T Xdot - direct) P`` of every layer.

    Attributes:
        found: By layer, its null space in numbers, its direction and its effect.
        spaces: By layer, its null space, where it is kept.
        work: Floating-point operations used.
        begun: Whether a tangent has arrived.
    """

    def __init__(
        self,
        graph: LayerGraph,
        layers: Sequence[Layer],
        lin: Linearization,
        config: TeleportConfig,
        *,
        length: float | Array,
        scale: Array | float,
        direct: Vector | None,
        spaces: Mapping[int, NullSpace],
        keep: bool,
    ) -> None:
        """Prepare for the tangents of the sites, which arrive in the order of the sites.

        Args:
            graph: The network.
            layers: Its layers.
            lin: The linearization that holds their sites.
            config: Settings.
            length: Relative length of all steps, to which a budget is laid out.
            scale: What the tangents that arrive are to be divided by, 0-d.
            direct: What is subtracted before projecting, one array per parameter, or None.
            spaces: Null spaces that are known already.
            keep: Whether null spaces are needed afterwards.
        """
        self._graph, self._layers, self._config = graph, layers, config
        self._length, self._scale, self._direct = length, scale, direct
        self._keep = keep
        self.found: dict[int, Found] = {}
        self.spaces = dict(spaces)
        self.work = 0.0
        self.begun = False
        self._sums = [_Sum() for _ in layers]
        self._users: dict[int, set[int]] = {}
        for index, layer in enumerate(layers):
            for site in layer.block.sites:
                self._users.setdefault(site, set()).add(index)
        self._last = [max(layer.block.sites) for layer in layers]
        self._sites: list[Site | None] = [
            s if i in self._users else None for i, s in enumerate(lin.sites)
        ]

    def inputs(self, index: int) -> Array | None:
        """Return the inputs of a site at the current weights; None where no tangent is needed."""
        site = self._sites[index]
        return None if site is None else site.inputs

    def receive(self, index: int, tangent: Array) -> None:
        """Take the tangent of the inputs of site ``index``.

        Raises:
            RuntimeError: If that of a later site has been taken before.
        """
        self.begun = True
        self._finish(before=index)  # a site that is passed over has the tangent 0
        if index not in self._users:
            return
        users, site = self._users[index], self._sites[index]
        if site is None:
            msg = f"the tangent of site {index} arrived after that of a later site"
            raise RuntimeError(msg)
        if site.cotangent is not None:
            for b in sorted(users):
                self._add(b, site, widen(tangent))
        self._finish(before=index + 1)

    def finish(self) -> None:
        """Note that no more tangents arrive."""
        self._finish(before=len(self._sites))

    def _finish(self, before: int) -> None:
        """Finish every layer whose last site comes ``before`` this one."""
        for b, last in enumerate(self._last):
            if last < before and b not in self.found:
                found = self._direction(b)
                # Directions of all layers wait for each other, together as large as the weights.
                kept = None if found.delta is None else self._graph.pack(found.delta)
                self.found[b] = replace(found, delta=kept)
                self._free(b)

    def _free(self, b: int) -> None:
        """Free what only this layer needed."""
        self._sums[b] = _Sum()
        if not self._keep:
            del self.spaces[b]
        for i in self._layers[b].block.sites:
            self._users[i].discard(b)
            if not self._users[i]:
                self._sites[i] = None

    def _own(self, b: int) -> list[Site]:
        sites = [self._sites[i] for i in self._layers[b].block.sites]
        return [site for site in sites if site is not None]

    def _space(self, b: int) -> NullSpace:
        """Return the null space of a layer, made when it is first asked for."""
        if b not in self.spaces:
            layer, together = self._layers[b], self._graph.collective
            block, sites = layer.block, self._own(b)
            self.spaces[b] = made = null_space(
                sites,
                block.features,
                self._config,
                bias=block.bias is not None,
                samples=layer.samples,
                output_norm=layer.output_norm,
                length=self._length * layer.weight_norm,
                together=together,
            )
            self.work += made.work(block.layout.size, layer.samples)
        return self.spaces[b]

    def _route(self, b: int) -> str:
        if self._space(b).ratio is not None:
            return "direction"
        return _route(self._layers[b], self._own(b))

    def _add(self, b: int, site: Site, tangent: Array) -> None:
        total, route = self._sums[b], self._route(b)
        if route == "direction":
            total.add(site.weight_gradient(tangent))
            return
        bias = self._layers[b].block.bias is not None
        rows = with_column(tangent, 0.0) if bias else tangent
        free, kept, given = self._space(b).project(rows)
        total.kept, total.total = total.kept + kept, total.total + given
        if route == "rows":
            total.add(site.weight_gradient(free))
        else:
            total.left.append(widen(site.cotangent))
            total.right.append(free)

    def _direction(self, b: int) -> Found:
        """Project what has not been projected yet, join it with what has, and measure it."""
        total, layer, together = self._sums[b], self._layers[b], self._graph.collective
        space, delta = self._space(b), None
        if self._route(b) == "rows" and total.formed is not None:
            delta = together.mean(total.formed)
        elif total.right:
            delta = _joined(total, together)
        kept, given = together.sum(total.kept), together.sum(total.total)
        raw = self._raw(b)
        if raw is not None:
            free, more, whole = space.project(raw)
            if delta is not None:
                kept, given = kept / self._scale + more, given / self._scale + whole
                free = self._unscaled(delta) + free
            else:
                kept, given = more, whole
            delta = free
        # A budget takes what it can of any direction.
        share = 1.0 if space.ratio is not None or delta is None else _share(kept, given)
        return effect(delta, share, layer, space, self._own(b), together)

    def _unscaled(self, delta: Matrix) -> Array:
        return dense(delta) / namespace(self._scale).astype(self._scale, dense(delta).dtype)

    def _raw(self, b: int) -> Array | None:
        """Return what is still to be projected, over all replicas: (..., out, features)."""
        layer, total = self._layers[b], self._sums[b]
        raw = None
        if self._route(b) == "direction" and total.formed is not None:
            raw = self._graph.collective.mean(total.formed)
            total.formed = None  # as large as the weight: held once
            raw = with_column(raw, 0.0) if layer.block.bias is not None else raw
        if self._direct is None:
            return raw
        direct = read(self._graph, layer.block, self._direct)
        if direct is None:
            return raw
        return -direct if raw is None else self._unscaled(raw) - direct


def _joined(total: _Sum, together: Collective) -> LowRank:
    """Return the factors of all sites, and of all replicas, as one."""
    one, xp = len(total.right) == 1, namespace(total.right[0])
    left = total.left[0] if one else xp.concat(total.left, axis=-2)
    right = total.right[0] if one else xp.concat(total.right, axis=-2)
    if together.size == 1:
        return LowRank(left, right)
    return LowRank(together.rows(left) / together.size, together.rows(right))


def _route(layer: Layer, sites: Sequence[Site]) -> str:
    """Choose the cheapest order of the products in ``delta^T Xdot P`` from their shapes.

    ``"direction"`` projects the formed product, ``"rows"`` projects the rows of ``Xdot`` before
    forming it, ``"factors"`` also leaves it unformed: its norm then costs ``n^2`` per entry of a
    row instead of a pass over the weight.
    """
    (out, inp), samples = layer.block.layout.shape[-2:], layer.samples
    if not all(isinstance(site, DenseSite) for site in sites) or samples > out:
        return "direction"
    return "factors" if 4 * samples <= min(out, inp) else "rows"


def _share(kept: Array, total: Array) -> Array:
    """Return ``kept / total``, 0 where both are."""
    return kept / (total + float(namespace(total).finfo(total.dtype).smallest_normal))


def read(graph: LayerGraph, block: Block, vector: Vector) -> Array | None:
    """Return a block's part of a vector over all parameters, (..., out, features), or None."""
    weight = vector[block.parameter]
    if weight is None:
        return None
    part = widen(graph.read(block.parameter, dense(weight), block.layout))
    if block.bias is None:
        return part
    index, layout = block.bias
    bias = vector[index]
    if bias is None:
        return with_column(part, 0.0)
    column = widen(graph.read(index, dense(bias), layout))[..., None]
    return namespace(part).concat([part, column], axis=-1)
