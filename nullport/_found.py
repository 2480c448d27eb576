"""What a direction does to a layer's outputs: measured when it is found, per unit of its length.

Nothing here is as large as the layer's inputs, so they can be let go of as soon as it is known.
Everything scales with the step that is taken later: ``||X (c N)^T|| = c ||X N^T||``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nullport._arrays import Array, joint_norm, namespace, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block
from nullport._direction import Direction
from nullport._graph import Linearization
from nullport._projection import Filter

SAMPLED_ROWS = 16
"""Rows on which the output change is measured where the null space is exact."""


@dataclass(frozen=True)
class Found:
    """A direction, and its effect.

    Attributes:
        direction: The projected direction ``N``.
        bound: Bound on ``||X N^T||`` from the spectrum, 0-d; None where the null space is exact.
        change: ``||X N^T||`` on all rows, 0-d, or None.
        sample: A few rows ``X`` of every site, (..., m, features) each, or nothing.
        rows: Number of these rows.
    """

    direction: Direction
    bound: Array | None = None
    change: Array | None = None
    sample: list[Array] = field(default_factory=list)
    rows: int = 0


def look_at(
    direction: Direction,
    block: Block,
    filter_: Filter | BudgetFilter,
    lin: Linearization,
    *,
    inexact: bool,
    measured: bool,
) -> Found:
    """Find out what a direction does to the outputs of its block.

    Args:
        direction: The direction.
        block: The block.
        filter_: The filter that made it.
        lin: The linearization that holds the block's sites.
        inexact: Whether any of the output may change.
        measured: Whether an inexact change is measured now, on all rows.
    """
    if not inexact:
        sample, rows = _sampled(block, lin)
        return Found(direction, sample=sample, rows=rows)
    bound = None if filter_.space.energies is None else filter_.given_up(direction)
    change = output_change(block, lin, direction.dense()) if measured else None
    return Found(direction, bound, change)


def _sampled(block: Block, lin: Linearization) -> tuple[list[Array], int]:
    parts, seen = [], 0
    samples = sum(lin.sites[i].samples for i in block.sites)
    for site in (lin.sites[i] for i in block.sites):
        for chunk in site.rows(max(1, samples // SAMPLED_ROWS)):
            rows = widen(chunk)
            # A copy in any case: a view would hold on to all rows.
            copied = (
                namespace(rows).asarray(rows, copy=True)
                if block.bias is None
                else with_column(rows, 1.0)
            )
            parts.append(copied)
            seen += rows.shape[-2]
    return parts, seen


def output_change(block: Block, lin: Linearization, move: Array) -> Array:
    """Return ``||X N^T||`` over all sites of a block for ``N`` (..., out, features), 0-d."""
    weight, bias = (move, None) if block.bias is None else (move[..., :-1], move[..., -1])
    return joint_norm([lin.sites[i].apply(weight, bias) for i in block.sites])
