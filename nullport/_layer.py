"""One block on its way through a teleport: its null space, its moves, what to report of it.

All numbers stay 0-d arrays until the report is made, so that nothing here waits for a device or
asks for a value under jit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property, reduce
from math import prod
from operator import or_

from nullport._arrays import Array, joint_norm, namespace, norm, plain, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block, explained, without_hidden_bias
from nullport._config import TeleportConfig
from nullport._direction import Direction
from nullport._gradient_site import layer_input
from nullport._graph import LayerGraph, Linearization, Move
from nullport._projection import Filter, threshold_filter, unfiltered
from nullport._report import Hold, LayerReport
from nullport._rowspace import row_space
from nullport._tangent import bits
from nullport._verdict import first

MISMATCH = {16: 0.05, 32: 1e-4, 64: 1e-9}
"""Largest relative part of a gradient, by dtype bits, that the sites may leave unexplained."""

SLACK = 1 / 8
"""Share of the inputs that must be left free for the exact null space to be used."""

ROWS_PER_FEATURE, WIDE, ROWS_PER_WIDE_FEATURE = 4, 1024, 0.5
"""Rows per input that the filter of a budget is made from, and the same from ``WIDE`` inputs on.

Half as many rows as inputs need a QR instead of an eigendecomposition in float64: a tenth of the
time for 99 % of the gain at a budget of 0.2, two thirds at 0.02 (``asv_bench/routes.py``).
"""

SAMPLED_ROWS = 16
"""Rows on which the output change is measured where the null space is exact."""


@dataclass
class Layer:
    """A block, and what is told of it in the end; nothing here is as large as its inputs.

    Attributes:
        block: The weights.
        kind: The operation they are used in.
        samples: Rows of input.
        hidden: Whether a use of the weights was missed (0-d bool).
        weight_norm: ``||W||``, bias included, 0-d.
        output_norm: ``||X W^T||``, without the bias, 0-d.
        free: Number of free directions over the whole stack, 0-d.
        empty: Whether nothing can move (0-d bool).
        rounding: What rounding may add to the output change per unit of length, 0-d.
        size: ``||N||`` of the last direction, 0-d; None if no tangent reached the block.
        share: What the projection left of it, relative, 0-d.
        steps: The steps taken, until they have been measured.
        length: Length of all steps, 0-d.
        bound: Bound on ``||dW X^T||`` so far, without rounding, 0-d.
        change: The same, measured, 0-d.
        inexact: Whether any of the output may change.
        kept: Whether that is measured before moving, to keep to a budget.
    """

    block: Block
    kind: str
    samples: int
    hidden: Array
    weight_norm: Array
    output_norm: Array
    free: Array
    empty: Array
    rounding: Array
    size: Array | None = None
    share: Array | None = None
    steps: list[Direction] = field(default_factory=list)
    length: Array | None = None
    bound: Array | float = 0.0
    change: Array | None = None
    inexact: bool = False
    kept: bool = False

    @cached_property
    def able(self) -> Array:
        """Whether the block was fully seen and has a null space (0-d bool)."""
        return ~(self.empty | self.hidden)

    def hold(self) -> Array:
        """Return why the block does not move, a code of :class:`Hold` as a 0-d array."""
        tests: list[tuple[IntEnum, Array]] = [(Hold.HIDDEN, self.hidden), (Hold.EMPTY, self.empty)]
        if self.size is None or self.share is None:
            tests.append((Hold.STILL, self.hidden | ~self.hidden))
        else:
            tests += list(_tests(self.size, self.share).items())
            if self.length is not None:
                tests.append((Hold.SHORT, self.length == 0))
        return first(tests)

    def step(
        self,
        direction: Direction,
        filter_: Filter | BudgetFilter,
        factor: Array,
        reach: Array,
        change: Array | None,
    ) -> list[Move]:
        """Take a step: the direction times ``factor``, of length ``reach``; none where it is 0.

        ``change`` is the direction's output change where that is known exactly.
        """
        xp = namespace(direction.right)
        factor = xp.astype(factor, direction.right.dtype, copy=False)
        right = xp.where(factor > 0, direction.right * factor, xp.zeros_like(factor))
        step = replace(direction, right=right)
        if change is not None:
            self.bound = self.bound + change * factor
        elif filter_.space.energies is not None:
            self.bound = self.bound + filter_.given_up(step)
        self.length = reach if self.length is None else self.length + reach
        self.steps.append(step)
        return self._moves(step)

    def _moves(self, step: Direction) -> list[Move]:
        block, left = self.block, step.left
        if block.bias is None:
            return [Move(block.parameter, block.layout, step.right, left)]
        index, layout = block.bias
        bias = step.right[..., -1]
        if left is not None:
            bias = (namespace(left).matrix_transpose(left) @ bias[..., None])[..., 0]
        return [
            Move(block.parameter, block.layout, step.right[..., :-1], left),
            Move(index, layout, bias),
        ]

    def measure(self, lin: Linearization) -> None:
        """Measure the output change ``||dW X^T||`` on the inputs of ``lin``, before the move.

        Where the null space is exact, about ``SAMPLED_ROWS`` rows stand for all. Where a single
        step keeps to a budget, its change on all rows is known already.
        """
        if not self.steps:
            return
        if self.inexact and len(self.steps) == 1 and self.kept:
            self.change = self.bound
        elif self.inexact:
            total = [step.dense() for step in self.steps]
            self.change = output_change(self.block, lin, sum(total[1:], start=total[0]))
        else:
            self.change = self._sampled(lin)
        self.steps.clear()

    def _sampled(self, lin: Linearization) -> Array:
        parts, seen = [], 0
        for site in (lin.sites[i] for i in self.block.sites):
            for chunk in site.rows(max(1, site.samples // SAMPLED_ROWS)):
                rows = widen(chunk)
                rows = rows if self.block.bias is None else with_column(rows, 1.0)
                outputs = [step.outputs(rows) for step in self.steps]
                parts.append(norm(sum(outputs[1:], start=outputs[0])))
                seen += rows.shape[-2]
        return joint_norm(parts) * (self.samples / seen) ** 0.5

    def report(self) -> LayerReport:
        """Return what happened to the block."""
        stack = prod(size for size, _ in self.block.layout.stack)
        xp = namespace(self.weight_norm)
        length = xp.zeros_like(self.weight_norm) if self.length is None else self.length
        output = _positive(self.output_norm)
        return LayerReport(
            name=self.block.name,
            kind=self.kind,
            in_features=self.block.features,
            samples=self.samples,
            rank=plain(stack * self.block.features - self.free),
            null_dim=plain(self.free),
            moved=plain(length / _positive(self.weight_norm)),
            output_change_bound=plain((self.bound + length * self.rounding) / output),
            output_change=0.0 if self.change is None else plain(self.change / output),
            hold=plain(xp.where(length > 0, xp.zeros_like(hold := self.hold()), hold)),
        )


def _positive(x: Array) -> Array:
    """Return ``x`` where it is positive, else 1: a divisor."""
    xp = namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def _tests(size: Array, share: Array) -> dict[Hold, Array]:
    """Causes that depend on a direction's norm and on the share the projection left of it."""
    xp = namespace(size)
    return {
        Hold.STILL: size == 0,
        Hold.BROKEN: ~xp.isfinite(size),
        Hold.SPANNED: share < 1e3 * float(xp.finfo(size.dtype).eps),
    }


def take_steps(
    layers: Sequence[Layer],
    filters: Sequence[Filter | BudgetFilter],
    directions: Sequence[Direction | None],
    lin: Linearization,
    length: float | Array,
) -> list[Move]:
    """Scale every direction to ``length * ||W||`` and return all moves.

    The scalars of all layers are handled as one array: a step costs a few small operations per
    network instead of a few per layer.
    """
    moving: list[tuple[Layer, Filter | BudgetFilter, Direction]] = []
    for layer, filter_, direction in zip(layers, filters, directions, strict=True):
        layer.size = None if direction is None else direction.size
        layer.share = None if direction is None else direction.share
        if direction is not None:
            moving.append((layer, filter_, direction))
    if not moving:
        return []
    xp = namespace(moving[0][2].size)
    size = xp.stack([direction.size for *_, direction in moving])
    share = xp.stack([direction.share for *_, direction in moving])
    able = xp.stack([layer.able for layer, *_ in moving])
    held = reduce(or_, _tests(size, share).values(), ~able)
    norms = xp.stack([xp.astype(layer.weight_norm, size.dtype) for layer, *_ in moving])
    size = xp.where(held, xp.ones_like(size), size)
    reach = xp.where(held, xp.zeros_like(size), length * norms)
    changes = [_change(layer, direction, lin) for layer, _, direction in moving]
    allowed = xp.stack(
        [
            _allowed(f, c, size[i])
            for i, ((_, f, _), c) in enumerate(zip(moving, changes, strict=True))
        ]
    )
    reach = xp.minimum(reach, allowed * size)
    factor = reach / size
    moves: list[Move] = []
    for i, (layer, filter_, direction) in enumerate(moving):
        moves += layer.step(direction, filter_, factor[i], reach[i], changes[i])
    return moves


def _change(layer: Layer, direction: Direction, lin: Linearization) -> Array | None:
    """Return a direction's output change on all rows, 0-d, where it is kept to a budget.

    The filter was made from a part of the rows; what it does to all of them is measured.
    """
    if not layer.kept:
        return None
    return output_change(layer.block, lin, direction.dense())


def output_change(block: Block, lin: Linearization, move: Array) -> Array:
    """Return ``||X N^T||`` over all sites of a block for ``N`` (..., out, features), 0-d."""
    weight, bias = (move, None) if block.bias is None else (move[..., :-1], move[..., -1])
    return joint_norm([lin.sites[i].apply(weight, bias) for i in block.sites])


def _allowed(filter_: Filter | BudgetFilter, change: Array | None, like: Array) -> Array:
    """Return the largest factor of a direction that a budget allows, 0-d."""
    xp = namespace(like)
    if change is None or not isinstance(filter_, BudgetFilter):
        return xp.full_like(like, xp.inf)
    most = xp.astype(filter_.change, like.dtype)
    change = xp.astype(change, like.dtype)
    return most / xp.where(change > 0, change, xp.ones_like(change))


def make_layer(
    block: Block,
    graph: LayerGraph,
    lin: Linearization,
    weights: Sequence[Array],
    config: TeleportConfig,
    radius: float | Array,
) -> tuple[Layer, Filter | BudgetFilter]:
    """Check that a block's uses were all seen, and build its null space."""
    sites = [lin.sites[i] for i in block.sites]
    tolerance = MISMATCH[bits(lin)]
    if block.bias is not None:
        index, layout = block.bias
        bias = lin.gradients[index]
        bias = None if bias is None else graph.read(index, bias, layout)
        block = without_hidden_bias(block, bias, lin, tolerance)
    gradient = lin.gradients[block.parameter]
    input_norm = joint_norm([layer_input(site) for site in sites])
    if gradient is None:
        mismatch = input_norm * 0
    else:
        gradient = graph.read(block.parameter, gradient, block.layout)
        mismatch = explained(block, gradient, lin)
    parts = [graph.read(block.parameter, weights[block.parameter], block.layout)]
    if block.bias is not None:
        parts.append(graph.read(block.bias[0], weights[block.bias[0]], block.bias[1]))
    weight_norm = joint_norm(parts)
    output_norm = joint_norm([site.output_norm for site in sites])
    filter_ = make_filter(block, lin, config, output_norm, radius * weight_norm)
    kept = isinstance(filter_, BudgetFilter) or config.projection == "none"
    layer = Layer(
        block=block,
        kind=sites[0].kind,
        samples=sum(site.samples for site in sites),
        hidden=mismatch > tolerance,
        weight_norm=weight_norm,
        output_norm=output_norm,
        free=filter_.free,
        empty=filter_.empty,
        rounding=filter_.rounding(input_norm),
        inexact=kept or config.threshold > 0,
        kept=kept,
    )
    return layer, filter_


def enough_rows(features: int) -> int:
    """Return how many rows the filter of a budget is made from."""
    return int((ROWS_PER_WIDE_FEATURE if features >= WIDE else ROWS_PER_FEATURE) * features)


def make_filter(
    block: Block, lin: Linearization, config: TeleportConfig, output_norm: Array, length: Array
) -> Filter | BudgetFilter:
    """Build the null-space filter of a block from the inputs of all its sites.

    Args:
        block: The block.
        lin: The linearization that holds its sites.
        config: Settings.
        output_norm: ``||X W^T||``, of which the budget is a share, 0-d.
        length: Length ``||N||`` of all steps, 0-d.
    """
    sites = [lin.sites[i] for i in block.sites]
    samples = sum(site.samples for site in sites)
    if config.projection == "none":
        return unfiltered(sites[0].inputs, block.features, samples)
    tight = config.projection == "budget" and samples > (1 - SLACK) * block.features
    spectrum = tight or config.threshold > 0
    bias = block.bias is not None
    every = max(1, samples // enough_rows(block.features)) if tight else 1
    chunks = (chunk for site in sites for chunk in site.rows(every))
    space = row_space(
        chunks, samples, bias=bias, spectrum=spectrum, only_null=not spectrum, every=every
    )
    if tight:
        change = config.budget * output_norm / config.steps
        return BudgetFilter(space, change, length / config.steps)
    return threshold_filter(space, config.threshold)
