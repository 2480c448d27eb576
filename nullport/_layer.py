"""One block on its way through a teleport: its null space, its moves, what to report of it.

All numbers stay 0-d arrays until the report is made, so that nothing here waits for a device or
asks for a value under jit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from math import prod
from operator import or_

from nullport._arrays import Array, joint_norm, namespace, norm, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block, explained, without_hidden_bias
from nullport._config import TeleportConfig
from nullport._direction import Direction
from nullport._graph import LayerGraph, Linearization, Move
from nullport._projection import Filter, threshold_filter
from nullport._report import LayerReport
from nullport._rowspace import row_space
from nullport._tangent import bits

MISMATCH = {16: 0.05, 32: 1e-4, 64: 1e-9}
"""Largest relative part of a gradient, by dtype bits, that the sites may leave unexplained."""

SLACK = 1 / 8
"""Share of the inputs that must be left free for the exact null space to be used."""

SAMPLED_ROWS = 16
"""Rows on which the output change is measured where the null space is exact."""

WORDS = {
    "hidden": "part of its gradient comes from a use that is not visible",
    "empty": "its null space is empty",
    "still": "its inputs do not depend on the weights, as in a first layer",
    "broken": "its direction is not finite",
    "spanned": "its direction lies in the row space of its inputs",
}
"""Why a captured block does not move, by cause, in the order in which causes are named."""


@dataclass
class Layer:
    """A block, the inputs it must respect, and its move so far.

    Attributes:
        block: The weights.
        kind: The operation they are used in.
        samples: Rows of input.
        filter: What a direction must pass through.
        hidden: Whether a use of the weights was missed (0-d bool).
        weight_norm: ``||W||``, bias included, 0-d.
        input_norm: ``||X||``, 0-d.
        output_norm: ``||X W^T||``, 0-d.
        direction: The last direction, None if no tangent reached the block.
        steps: The steps taken, scaled.
        length: Length of all steps, 0-d.
        bound: Bound on ``||dW X^T||`` so far, 0-d.
        change: The same, measured after the move, 0-d.
    """

    block: Block
    kind: str
    samples: int
    filter: Filter | BudgetFilter
    hidden: Array
    weight_norm: Array
    input_norm: Array
    output_norm: Array
    direction: Direction | None = None
    steps: list[Direction] = field(default_factory=list)
    length: Array | None = None
    bound: Array | float = 0.0
    change: Array | None = None

    @cached_property
    def able(self) -> Array:
        """Whether the block was fully seen and has a null space (0-d bool)."""
        return ~(self.filter.empty | self.hidden)

    def causes(self) -> dict[str, Array | bool]:
        """Return, per key of ``WORDS``, whether it keeps the block from moving (0-d bool)."""
        causes: dict[str, Array | bool] = {"hidden": self.hidden, "empty": self.filter.empty}
        if self.direction is None:
            return causes | {"still": True}
        size, share = self.direction.size, self.direction.share
        return causes | _causes(size, share)

    def allowed(self, direction: Direction) -> Array:
        """Return the largest factor of a direction that the budget allows, 0-d."""
        xp = namespace(direction.size)
        if not isinstance(self.filter, BudgetFilter):
            return xp.full_like(direction.size, xp.inf)
        change = self.filter.given_up(direction)
        return xp.astype(self.filter.change, change.dtype) / xp.where(
            change > 0, change, xp.ones_like(change)
        )

    def step(self, direction: Direction, factor: Array, reach: Array) -> list[Move]:
        """Take a step: the direction times ``factor``, of length ``reach``; none where it is 0."""
        xp = namespace(direction.right)
        right = xp.where(factor > 0, direction.right * factor, xp.zeros_like(factor))
        step = replace(direction, right=right)
        if self.filter.space.energies is not None:
            self.bound = self.bound + self.filter.given_up(step)
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

    def measure(self, lin: Linearization, *, sample: bool) -> None:
        """Measure the output change ``||dW X^T||`` on the inputs of ``lin``.

        Args:
            lin: The linearization before the move.
            sample: Take about ``SAMPLED_ROWS`` rows, scaled to all, instead of every row.
        """
        if not self.steps:
            return
        parts, seen = [], 0
        for rows in self._rows(lin, sample=sample):
            outputs = [step.outputs(rows) for step in self.steps]
            parts.append(norm(sum(outputs[1:], start=outputs[0])))
            seen += rows.shape[-2]
        self.change = joint_norm(parts) * (self.samples / seen) ** 0.5

    def _rows(self, lin: Linearization, *, sample: bool) -> Iterator[Array]:
        for index in self.block.sites:
            for chunk in lin.sites[index].rows():
                if chunk.shape[-2] == 0:
                    continue
                rows = (
                    chunk[..., :: max(1, chunk.shape[-2] // SAMPLED_ROWS), :] if sample else chunk
                )
                rows = widen(rows)
                yield rows if self.block.bias is None else with_column(rows, 1.0)
                if sample:
                    return

    def report(self) -> LayerReport:
        """Return what happened to the block, as plain numbers."""
        null_dim, features = int(self.filter.free), self.filter.space.features
        stack = prod(self.filter.space.basis.shape[:-2])
        length = 0.0 if self.length is None else float(self.length)
        moved = length / max(float(self.weight_norm), 1e-30)
        reason = next((WORDS[cause] for cause, holds in self.causes().items() if holds), "")
        output = max(float(self.output_norm), 1e-30)
        bound = float(self.bound) + length * float(self.filter.rounding(self.input_norm))
        return LayerReport(
            name=self.block.name,
            kind=self.kind,
            in_features=features,
            samples=self.samples,
            rank=stack * features - null_dim,
            null_dim=null_dim,
            moved=moved,
            output_change_bound=bound / output,
            output_change=0.0 if self.change is None else float(self.change) / output,
            reason="" if moved else reason,
        )


def _causes(size: Array, share: Array) -> dict[str, Array]:
    """Causes that depend on a direction's norm and on the share the projection left of it."""
    xp = namespace(size)
    return {
        "still": size == 0,
        "broken": ~xp.isfinite(size),
        "spanned": share < 1e3 * float(xp.finfo(size.dtype).eps),
    }


def take_steps(
    layers: Sequence[Layer], directions: Sequence[Direction | None], length: float
) -> list[Move]:
    """Scale every direction to ``length * ||W||`` and return all moves.

    The scalars of all layers are handled as one array: a step costs a few small operations per
    network instead of a few per layer.
    """
    for layer, direction in zip(layers, directions, strict=True):
        layer.direction = direction
    moving = [
        (layer, direction)
        for layer, direction in zip(layers, directions, strict=True)
        if direction is not None
    ]
    if not moving:
        return []
    xp = namespace(moving[0][1].size)
    size = xp.stack([direction.size for _, direction in moving])
    share = xp.stack([direction.share for _, direction in moving])
    able = xp.stack([layer.able for layer, _ in moving])
    held = reduce(or_, _causes(size, share).values(), ~able)
    norms = xp.stack([xp.astype(layer.weight_norm, size.dtype) for layer, _ in moving])
    size = xp.where(held, xp.ones_like(size), size)
    reach = xp.where(held, xp.zeros_like(size), length * norms)
    reach = xp.minimum(reach, xp.stack([layer.allowed(d) for layer, d in moving]) * size)
    factor = reach / size
    moves: list[Move] = []
    for i, (layer, direction) in enumerate(moving):
        moves += layer.step(direction, factor[i], reach[i])
    return moves


def make_layer(
    block: Block,
    graph: LayerGraph,
    lin: Linearization,
    weights: Sequence[Array],
    config: TeleportConfig,
    radius: float,
) -> Layer:
    """Check that a block's uses were all seen, and build its null space."""
    sites = [lin.sites[i] for i in block.sites]
    tolerance = MISMATCH[bits(lin)]
    if block.bias is not None:
        index, layout = block.bias
        bias = lin.gradients[index]
        bias = None if bias is None else graph.read(index, bias, layout)
        block = without_hidden_bias(block, bias, lin, tolerance)
    gradient = lin.gradients[block.parameter]
    if gradient is None:
        mismatch = joint_norm([site.inputs for site in sites]) * 0
    else:
        gradient = graph.read(block.parameter, gradient, block.layout)
        mismatch = explained(block, gradient, lin)
    parts = [graph.read(block.parameter, weights[block.parameter], block.layout)]
    if block.bias is not None:
        parts.append(graph.read(block.bias[0], weights[block.bias[0]], block.bias[1]))
    weight_norm = joint_norm(parts)
    output_norm = joint_norm([site.output_norm for site in sites])
    change, length = config.budget * output_norm / config.steps, radius * weight_norm
    return Layer(
        block=block,
        kind=sites[0].kind,
        samples=sum(site.samples for site in sites),
        filter=make_filter(block, lin, config, change, length / config.steps),
        hidden=mismatch > tolerance,
        weight_norm=weight_norm,
        input_norm=joint_norm([site.inputs for site in sites]),
        output_norm=output_norm,
    )


def make_filter(
    block: Block, lin: Linearization, config: TeleportConfig, change: Array, length: Array
) -> Filter | BudgetFilter:
    """Build the null-space filter of a block from the inputs of all its sites.

    Args:
        block: The block.
        lin: The linearization that holds its sites.
        config: Settings.
        change: Output change ``||N X^T||`` that the budget allows, 0-d.
        length: Length ``||N||`` of the step to come, 0-d.
    """
    sites = [lin.sites[i] for i in block.sites]
    samples = sum(site.samples for site in sites)
    features = block.features
    chunks = (chunk for site in sites for chunk in site.rows())
    tight = config.projection == "budget" and samples > (1 - SLACK) * features
    spectrum = tight or config.threshold > 0
    space = row_space(chunks, samples, bias=block.bias is not None, spectrum=spectrum)
    if tight:
        return BudgetFilter(space, change, length)
    return threshold_filter(space, config.threshold)
