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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from nullport._arrays import Array, namespace, norm, product_norm, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block
from nullport._graph import Linearization
from nullport._projection import Filter
from nullport._site import DenseSite


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
        return product_norm(self.left, self.right)

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


class Filters(Protocol):
    """The filter of each block, by its index."""

    def __getitem__(self, b: int, /) -> Filter | BudgetFilter: ...


class Accumulator:
    """Collects ``N = sum over sites of (delta^T Xdot) P`` for every block, as tangents arrive."""

    def __init__(
        self,
        blocks: Sequence[Block],
        filters: Filters,
        lin: Linearization,
        direct: Callable[[int], Array | None],
        finished: Callable[[int, Direction | None], None],
    ) -> None:
        """Prepare for the tangents of ``lin``'s sites, which arrive in the order of the sites.

        Args:
            blocks: The blocks.
            filters: The filter of each, asked for when it is needed.
            lin: The linearization that holds their sites.
            direct: Of each block, what is subtracted before projecting, (..., out, features), or
                None.
            finished: Told a block's index and its direction, or None if no tangent arrived, as
                soon as no other tangent can change it.
        """
        self._blocks, self._filters, self._lin = blocks, filters, lin
        self._direct, self._finished = direct, finished
        self._sums = [_Sum() for _ in blocks]
        self._done: set[int] = set()
        self._users: dict[int, list[int]] = {}
        for index, block in enumerate(blocks):
            for site in block.sites:
                self._users.setdefault(site, []).append(index)
        self._last = [max(block.sites) for block in blocks]
        self._routes: dict[int, str] = {}

    def _route(self, b: int) -> str:
        if b not in self._routes:
            budget = isinstance(self._filters[b], BudgetFilter)
            self._routes[b] = "direction" if budget else _route(self._blocks[b], self._lin)
        return self._routes[b]

    def receive(self, index: int, tangent: Array) -> None:
        """Take the tangent of the inputs of site ``index``.

        Raises:
            RuntimeError: If that of a later site has been taken before.
        """
        self._finish(before=index)  # a site that is passed over has the tangent 0
        if index in self._users and self._lin.sites[index].cotangent is not None:
            self._add(index, widen(tangent))
        self._finish(before=index + 1)

    def _finish(self, before: int) -> None:
        """Finish every block whose last site comes ``before`` this one."""
        for b, last in enumerate(self._last):
            if last < before and b not in self._done:
                self._done.add(b)
                direction = self._direction(b)
                self._sums[b] = _Sum()
                self._finished(b, direction)

    def _add(self, index: int, tangent: Array) -> None:
        site = self._lin.sites[index]
        if not self._done.isdisjoint(self._users[index]):
            msg = f"the tangent of site {index} arrived after that of a later site"
            raise RuntimeError(msg)
        for b in self._users[index]:
            bias, total = self._blocks[b].bias is not None, self._sums[b]
            if self._route(b) == "direction":
                total.add(site.weight_gradient(tangent))
                continue
            rows = with_column(tangent, 0.0) if bias else tangent
            free, kept, given = self._filters[b].measured(rows)
            total.kept, total.total = total.kept + kept, total.total + given
            if self._route(b) == "rows":
                total.add(site.weight_gradient(free))
            else:
                total.left.append(widen(site.cotangent))
                total.right.append(free)

    def finish(self) -> None:
        """Note that no more tangents arrive."""
        self._finish(before=max(self._last, default=0) + 1)

    def _direction(self, b: int) -> Direction | None:
        """Project what has not been projected yet, and join it with what has."""
        total, direct = self._sums[b], self._direct(b)
        projected = None
        route = self._route(b)
        if route == "rows" and total.formed is not None:
            projected = Direction(None, total.formed, _share(total.kept, total.total))
        elif total.right:
            xp = namespace(total.right[0])
            one = len(total.right) == 1
            left = total.left[0] if one else xp.concat(total.left, axis=-2)
            right = total.right[0] if one else xp.concat(total.right, axis=-2)
            projected = Direction(left, right, _share(total.kept, total.total))
        raw = None if direct is None else -direct
        if route == "direction" and total.formed is not None:
            formed, total.formed = total.formed, None  # as large as the weight: held once
            formed = with_column(formed, 0.0) if self._blocks[b].bias is not None else formed
            raw = formed if raw is None else formed + raw
            del formed
        if raw is None:
            return projected
        free, kept, given = self._filters[b].measured(raw)
        if projected is not None:  # a first layer's tangent may be 0: its share is that of the rest
            share = _share(total.kept + kept, total.total + given)
            return Direction(None, projected.dense() + free, share)
        if isinstance(self._filters[b], BudgetFilter):  # takes what it can of any direction
            return Direction(None, free, namespace(free).ones_like(kept))
        return Direction(None, free, _share(kept, given))


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
    """Return ``kept / total``, 0 where both are."""
    return kept / (total + float(namespace(total).finfo(total.dtype).smallest_normal))
