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

from nullport import _arrays as ar
from nullport._arrays import Array, LowRank, Matrix, Vector
from nullport._capture import Block, Layer
from nullport._config import TeleportConfig
from nullport._nullspace import NullSpace, Pinned, null_space, pinned
from nullport._step import Found, effect, with_pinned
from nullport.network import DenseSite, LayerGraph, Linearization, Site


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

    Tangents arrive in the order of the sites. ``length`` is the relative length of all steps, to
    which a budget is laid out; tangents are to be divided by ``scale``; ``direct`` is subtracted
    before projecting; ``spaces`` are null spaces that are known already, and are held on to where
    ``keep`` says that they are needed again.

    Attributes:
        found: By layer, its null space in numbers, its direction and its effect.
        spaces: By layer, its null space, where it is kept.
        work: Floating-point operations used.
        factored: Those of null spaces by QR among them.
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
        """Prepare for the tangents of the sites of a linearization."""
        self._graph, self._layers, self._config = graph, layers, config
        self._length, self._scale, self._direct = length, scale, direct
        self._keep = keep
        self.found: dict[int, Found] = {}
        self.spaces = dict(spaces)
        self.work = self.factored = 0.0
        self.begun = False
        self._sums = [_Sum() for _ in layers]
        self._users: dict[int, set[int]] = {}
        for index, layer in enumerate(layers):
            for site in layer.block.every:
                self._users.setdefault(site, set()).add(index)
        self._last = [max(layer.block.every) for layer in layers]
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
        site = self._sites[index]
        if site is None:
            msg = f"the tangent of site {index} arrived after that of a later site"
            raise RuntimeError(msg)
        if site.cotangent is not None:
            for b in sorted(self._users[index]):
                self._add(b, index, site, ar.widen(tangent))
        self._finish(before=index + 1)

    def finish(self) -> None:
        """Note that no more tangents arrive."""
        self._finish(before=len(self._sites))

    def _finish(self, before: int) -> None:
        """Finish every layer whose last site comes ``before`` this one, and free what it needed."""
        for b, last in enumerate(self._last):
            if last >= before or b in self.found:
                continue
            found = self._direction(b)
            # Directions of all layers wait for each other, together as large as the weights.
            kept = None if found.delta is None else self._graph.pack(found.delta)
            self.found[b] = replace(found, delta=kept)
            self._sums[b] = _Sum()
            if not self._keep:
                del self.spaces[b]
            for i in self._layers[b].block.every:
                self._users[i].discard(b)
                if not self._users[i]:
                    self._sites[i] = None

    def _own(self, b: int) -> list[Site]:
        return self._held(self._layers[b].block.sites)

    def _held(self, indices: Sequence[int]) -> list[Site]:
        return [site for i in indices if (site := self._sites[i]) is not None]

    def _space(self, b: int) -> NullSpace:
        """Return the null space of a layer, made when it is first asked for."""
        if b not in self.spaces:
            layer, block = self._layers[b], self._layers[b].block
            self.spaces[b] = null_space(
                self._own(b),
                block.features,
                self._config,
                bias=block.bias is not None,
                samples=layer.samples,
                output_norm=layer.output_norm,
                length=self._length * layer.weight_norm,
                together=self._graph.collective,
            )
            work = self.spaces[b].work(block.layout.size, layer.samples)
            self.work += work
            self.factored += work if self.spaces[b].rows <= block.features else 0.0
        return self.spaces[b]

    def _route(self, b: int) -> str:
        """Choose the cheapest order of the products in ``delta^T Xdot P`` from their shapes.

        ``"direction"`` projects the formed product, ``"rows"`` projects the rows of ``Xdot`` before
        forming it, ``"factors"`` also leaves it unformed: its norm then costs ``n^2`` per entry of
        a row instead of a pass over the weight.
        """
        (out, inp), samples = self._layers[b].block.layout.shape[-2:], self._layers[b].samples
        plain = all(isinstance(site, DenseSite) for site in self._own(b))
        plain = plain and not self._layers[b].block.pinned
        if self._space(b).ratio is not None or not plain or samples > out:
            return "direction"
        return "factors" if 4 * samples <= min(out, inp) else "rows"

    def _add(self, b: int, index: int, site: Site, tangent: Array) -> None:
        total, route = self._sums[b], self._route(b)
        if route == "direction":
            if index in self._layers[b].block.sites:
                total.add(site.weight_gradient(tangent))
            else:
                found = site.weight_gradient(tangent)
                total.add(ar.namespace(found).matrix_transpose(found))
            return
        bias = self._layers[b].block.bias is not None
        if self._direct is not None:  # few rows are scaled sooner than a product of them
            tangent = self._unscaled(tangent)
        rows = ar.with_column(tangent, 0.0) if bias else tangent
        free, kept, given = self._space(b).project(rows)
        total.kept, total.total = total.kept + kept, total.total + given
        if route == "rows":
            total.add(site.weight_gradient(free))
        else:
            total.left.append(ar.widen(site.cotangent))
            total.right.append(free)

    def _direction(self, b: int) -> Found:
        """Project what has not been projected yet, join it with what has, and measure it."""
        total, together, space = self._sums[b], self._graph.collective, self._space(b)
        delta: Matrix | None = None
        if total.right:
            delta = LowRank(*(_joined(factors) for factors in (total.left, total.right)))
        elif self._route(b) == "rows":
            delta = total.formed
        delta = together.mean(delta)
        kept, given = together.sum(total.kept), together.sum(total.total)
        raw, size = self._raw(b), None
        if raw is not None:
            free, more, whole = space.project(raw)
            del raw
            size = more if delta is None else None
            delta = free if delta is None else ar.added(free, ar.dense(delta))
            kept, given = kept + more, given + whole
        outer = self._outer(b)
        if outer is not None and delta is not None:
            delta, kept = outer.project(ar.dense(delta))
            size = None
        share: Array | float = 1.0
        if space.ratio is None and delta is not None:  # a budget takes what it can of any direction
            share = kept / (given + ar.tiny(given))
        layer = self._layers[b]
        found = effect(delta, share, layer, space, self._own(b), together, size=size)
        if outer is None:
            return found
        return with_pinned(found, layer, outer, self._held(layer.block.transposed), together)

    def _outer(self, b: int) -> Pinned | None:
        """Return the outputs of a layer that have to stay, or None where there are none."""
        block = self._layers[b].block
        if not block.pinned:
            return None
        sites, out = self._held(block.transposed), block.layout.shape[-2]
        return pinned(sites, block.held, out, self._graph.collective, self._space(b).size)

    def _unscaled(self, tangent: Array) -> Array:
        """Return a tangent, or what was made of it, per unit of ``v``."""
        return tangent / ar.namespace(self._scale).astype(self._scale, tangent.dtype)

    def _raw(self, b: int) -> Array | None:
        """Return what is still to be projected, over all replicas: (..., out, features)."""
        block, total, raw = self._layers[b].block, self._sums[b], None
        if self._route(b) == "direction" and total.formed is not None:
            raw = self._graph.collective.mean(total.formed)
            total.formed = None  # as large as the weight: held once
            raw = ar.with_column(raw, 0.0) if block.bias is not None else raw
        direct = None if self._direct is None else read(self._graph, block, self._direct)
        if raw is None:
            return None if direct is None else -direct
        raw = raw if self._direct is None else self._unscaled(raw)
        return raw if direct is None else ar.added(raw, direct, -1.0)


def _joined(factors: Sequence[Array]) -> Array:
    return factors[0] if len(factors) == 1 else ar.namespace(factors[0]).concat(factors, axis=-2)


def read(graph: LayerGraph, block: Block, vector: Vector) -> Array | None:
    """Return a block's part of a vector over all parameters, (..., out, features), or None."""
    if vector[block.parameter] is None:
        return None
    weight, *bias = (
        None if vector[i] is None else ar.widen(graph.read(i, ar.dense(vector[i]), layout))
        for i, layout in block.parts
    )
    if not bias:
        return weight
    if bias[0] is None:
        return ar.with_column(weight, 0.0)
    return ar.namespace(weight).concat([weight, bias[0][..., None]], axis=-1)
