"""The projected teleport gradient, without second derivatives.

The gradient of a weight is ``g_W = delta^T X``. Along a direction ``v`` over all parameters,

    d/de (delta^T X) = deltadot^T X + delta^T Xdot,

and the gradient of ``phi(g)`` over ``W`` is that derivative along ``v = dphi/dg``. The rows of the
first term lie in the row space of ``X``, so the projection ``P`` onto the null space removes it:

    P grad_W phi = (delta^T Xdot) P.

One gradient (g, X, delta), one tangent pass (every Xdot) and one weight-gradient kernel per layer;
no Hessian-vector product, no double backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace

from nullport._arrays import Array, norm, widen, with_column
from nullport._capture import Block
from nullport._graph import DenseSite, Linearization, Site
from nullport._projection import Filter


@dataclass(frozen=True)
class Direction:
    """A projected direction.

    Attributes:
        value: ``N``, shape (..., out, features), the column of the bias last if it has one.
        share: What the projection left, relative to what it was given; rounding if nothing.
    """

    value: Array
    share: Array


class Accumulator:
    """Collects ``N = sum over sites of (delta^T Xdot) P`` for every block, as tangents arrive.

    ``(delta^T Xdot) P = delta^T (Xdot P)``: for a plain matrix product with fewer samples than
    outputs it is cheaper to project the rows of the tangent than the direction.
    """

    def __init__(
        self, blocks: Sequence[Block], filters: Sequence[Filter], lin: Linearization
    ) -> None:
        """Prepare for the tangents of ``lin``'s sites."""
        self._blocks, self._filters, self._lin = blocks, filters, lin
        self._share: list[tuple[Array, Array] | None] = [None] * len(blocks)
        self._projected: list[Array | None] = [None] * len(blocks)
        self._raw: list[Array | None] = [None] * len(blocks)
        self._users: dict[int, list[int]] = {}
        for index, block in enumerate(blocks):
            for site in block.sites:
                self._users.setdefault(site, []).append(index)

    def receive(self, index: int, tangent: Array) -> None:
        """Take the tangent of the inputs of site ``index``."""
        site = self._lin.sites[index]
        if site.cotangent is None:
            return
        tangent = widen(tangent)
        for b in self._users.get(index, ()):
            bias = self._blocks[b].bias is not None
            if _project_rows_first(site):
                rows = with_column(tangent, 0.0) if bias else tangent
                free = self._filters[b].apply(rows)
                self._count(b, norm(free), norm(tangent))
                part = site.weight_gradient(free)
                self._projected[b] = _plus(self._projected[b], part)
            else:
                part = site.weight_gradient(tangent)
                self._raw[b] = _plus(self._raw[b], with_column(part, 0.0) if bias else part)

    def _count(self, b: int, kept: Array, total: Array) -> None:
        before = self._share[b]
        self._share[b] = (kept, total) if before is None else (before[0] + kept, before[1] + total)

    def result(self) -> list[Direction | None]:
        """Return the direction of every block; None where no tangent arrived."""
        return [self._block_result(b) for b in range(len(self._blocks))]

    def _block_result(self, b: int) -> Direction | None:
        projected, raw = self._projected[b], self._raw[b]
        if raw is not None:
            free = self._filters[b].apply(raw)
            self._count(b, norm(free), norm(raw))
            projected = _plus(projected, free)
        share = self._share[b]
        if projected is None or share is None:
            return None
        xp = array_namespace(projected)
        return Direction(projected, xp.where(share[1] > 0, share[0] / share[1], share[1]))


def _project_rows_first(site: Site) -> bool:
    return (
        isinstance(site, DenseSite)
        and site.cotangent is not None
        and site.samples <= site.cotangent.shape[-1]
    )


def _plus(a: Array | None, b: Array | None) -> Array | None:
    if a is None:
        return b
    return a if b is None else a + b
