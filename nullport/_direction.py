"""The projected teleport gradient, without second derivatives.

The gradient of a weight is ``g_W = delta^T X``. Along a direction ``v`` over all parameters,

    d/de (delta^T X) = deltadot^T X + delta^T Xdot,

and the gradient of ``phi(g)`` over ``W`` is that derivative along ``v = dphi/dg``. The rows of the
first term lie in the row space of ``X``, so the projection ``P`` onto the null space removes it:

    P grad_W phi = (delta^T Xdot) P.

One gradient (g, X, delta), one tangent pass (every Xdot) and one weight-gradient kernel per layer;
no Hessian-vector product, no double backward. With few samples the product is never formed:
``(delta^T Xdot) P = delta^T (Xdot P)`` stays in factors until it is added to the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nullport._arrays import Array, namespace, norm, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block
from nullport._graph import DenseSite, Linearization
from nullport._projection import Filter


@dataclass(frozen=True)
class Direction:
    """A projected direction ``N`` (..., out, features); a bias is its last column.

    Attributes:
        left: ``delta`` (..., n, out), or None if ``right`` is ``N`` itself.
        right: ``Xdot P`` (..., n, features), or ``N`` (..., out, features).
        share: What the projection left, relative to what it was given, 0-d.
    """

    left: Array | None
    right: Array
    share: Array

    @cached_property
    def size(self) -> Array:
        """``||N||``, 0-d; in factors never less than what rounding can resolve."""
        if self.left is None:
            return norm(self.right)
        xp = namespace(self.right)
        left = self.left @ xp.matrix_transpose(self.left)
        right = self.right @ xp.matrix_transpose(self.right)
        terms = left * right
        floor = float(xp.finfo(terms.dtype).eps) * xp.sum(xp.abs(terms))
        return xp.sqrt(xp.maximum(xp.sum(terms), floor))

    def outputs(self, rows: Array) -> Array:
        """Return ``rows N^T``, shape (..., m, out), for ``rows`` (..., m, features)."""
        product = rows @ namespace(rows).matrix_transpose(self.right)
        return product if self.left is None else product @ self.left

    def dense(self) -> Array:
        """Return ``N``, shape (..., out, features)."""
        if self.left is None:
            return self.right
        return namespace(self.left).matrix_transpose(self.left) @ self.right


@dataclass
class _Sum:
    """What has arrived for one block."""

    left: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    formed: Array | None = None
    kept: Array | float = 0.0
    total: Array | float = 0.0

    def add(self, part: Array) -> None:
        """Add a site's formed part."""
        self.formed = part if self.formed is None else self.formed + part


class Accumulator:
    """Collects ``N = sum over sites of (delta^T Xdot) P`` for every block, as tangents arrive."""

    def __init__(
        self,
        blocks: Sequence[Block],
        filters: Sequence[Filter | BudgetFilter],
        lin: Linearization,
        direct: Sequence[Array | None] | None = None,
    ) -> None:
        """Prepare for the tangents of ``lin``'s sites.

        ``direct``, per block (..., out, features), is subtracted before projecting.
        """
        self._blocks, self._filters, self._lin = blocks, filters, lin
        self._direct = [None] * len(blocks) if direct is None else direct
        self._sums = [_Sum() for _ in blocks]
        self._users: dict[int, list[int]] = {}
        for index, block in enumerate(blocks):
            for site in block.sites:
                self._users.setdefault(site, []).append(index)
        self._routes = [
            "direction" if isinstance(f, BudgetFilter) else _route(block, lin)
            for block, f in zip(blocks, filters, strict=True)
        ]

    def receive(self, index: int, tangent: Array) -> None:
        """Take the tangent of the inputs of site ``index``."""
        site = self._lin.sites[index]
        if site.cotangent is None or index not in self._users:
            return
        tangent = widen(tangent)
        for b in self._users[index]:
            bias, total = self._blocks[b].bias is not None, self._sums[b]
            if self._routes[b] == "direction":
                total.add(site.weight_gradient(tangent))
                continue
            rows = with_column(tangent, 0.0) if bias else tangent
            free = self._filters[b].apply(rows)
            total.kept, total.total = total.kept + norm(free), total.total + norm(tangent)
            if self._routes[b] == "rows":
                total.add(site.weight_gradient(free))
            else:
                total.left.append(widen(site.cotangent))
                total.right.append(free)

    def result(self) -> list[Direction | None]:
        """Return the direction of every block; None where no tangent arrived."""
        return [self._direction(b) for b in range(len(self._blocks))]

    def _direction(self, b: int) -> Direction | None:
        """Project what has not been projected yet, and join it with what has."""
        total, direct = self._sums[b], self._direct[b]
        projected = None
        if self._routes[b] == "rows" and total.formed is not None:
            projected = Direction(None, total.formed, _share(total.kept, total.total))
        elif total.right:
            xp = namespace(total.right[0])
            one = len(total.right) == 1
            left = total.left[0] if one else xp.concat(total.left, axis=-2)
            right = total.right[0] if one else xp.concat(total.right, axis=-2)
            projected = Direction(left, right, _share(total.kept, total.total))
        raw = None if direct is None else -direct
        if self._routes[b] == "direction" and total.formed is not None:
            bias = self._blocks[b].bias is not None
            formed = with_column(total.formed, 0.0) if bias else total.formed
            raw = formed if raw is None else formed + raw
        if raw is None:
            return projected
        free = self._filters[b].apply(raw)
        if projected is not None:  # a first layer's tangent may be 0: its share is that of the rest
            share = _share(total.kept + norm(free), total.total + norm(raw))
            return Direction(None, projected.dense() + free, share)
        if isinstance(self._filters[b], BudgetFilter):  # takes what it can of any direction
            return Direction(None, free, namespace(free).ones_like(norm(free)))
        return Direction(None, free, _share(norm(free), norm(raw)))


def _route(block: Block, lin: Linearization) -> str:
    """Choose the cheapest order of the products in ``delta^T Xdot P`` from their shapes.

    ``"direction"`` projects the formed product, ``"rows"`` projects the rows of ``Xdot`` before
    forming it, ``"factors"`` also leaves it unformed: its norm then costs ``n^2`` per entry of a
    row instead of a pass over the weight.
    """
    sites = [lin.sites[i] for i in block.sites]
    outputs = [site.cotangent.shape[-1] for site in sites if site.cotangent is not None]
    samples = sum(site.samples for site in sites)
    dense = all(isinstance(site, DenseSite) for site in sites)
    if not dense or not outputs or samples > outputs[0]:
        return "direction"
    return "factors" if 4 * samples <= min(outputs[0], sites[0].inputs.shape[-1]) else "rows"


def _share(kept: Array, total: Array) -> Array:
    xp = namespace(total)
    return kept / xp.where(total > 0, total, xp.ones_like(total))
