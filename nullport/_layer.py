"""One block on its way through a teleport: its null space, its moves, what to report of it.

All numbers stay 0-d arrays until the report is made, so that nothing here waits for a device or
asks for a value under jit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import or_

from array_api_compat import array_namespace

from nullport._arrays import Array, joint_norm, norm, widen, with_column
from nullport._capture import Block, explained
from nullport._config import TeleportConfig
from nullport._direction import Direction
from nullport._graph import LayerGraph, Linearization, Move
from nullport._projection import Filter, threshold_filter
from nullport._report import LayerReport
from nullport._rowspace import row_space
from nullport._tangent import bits

MISMATCH = {16: 0.1, 32: 1e-2, 64: 1e-6}
"""Largest relative part of a gradient, by dtype bits, that the sites may leave unexplained."""

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
        delta: The whole move so far, (..., out, features), None before the first step.
        bound: Bound on ``||delta X^T||`` so far, 0-d.
        change: The same, measured after the move, 0-d.
    """

    block: Block
    kind: str
    samples: int
    filter: Filter
    hidden: Array
    weight_norm: Array
    input_norm: Array
    output_norm: Array
    direction: Direction | None = None
    delta: Array | None = None
    bound: Array | None = None
    change: Array | None = None

    def causes(self) -> dict[str, Array | bool]:
        """Return, per key of ``WORDS``, whether it keeps the block from moving (0-d bool)."""
        causes: dict[str, Array | bool] = {"hidden": self.hidden, "empty": self.null_dim() == 0}
        if self.direction is None:
            return causes
        value, share = self.direction.value, self.direction.share
        xp = array_namespace(value)
        size = norm(value)
        rounding = 1e3 * float(xp.finfo(value.dtype).eps)
        return causes | {
            "still": size == 0,
            "broken": ~xp.isfinite(size),
            "spanned": share < rounding,
        }

    def null_dim(self) -> Array:
        """Number of free directions over the whole stack, 0-d."""
        rank = self.filter.rank()
        total = prod(rank.shape) * self.filter.space.features
        return total - array_namespace(rank).sum(rank)

    def step(self, direction: Direction | None, length: float) -> list[Move]:
        """Scale a direction to ``length * ||W||`` and return it as moves.

        Args:
            direction: The projected direction, or None if no tangent reached the block.
            length: Relative length of the step.

        Returns:
            The moves; zero where a cause keeps the block from moving.
        """
        self.direction = direction
        if direction is None:
            return []
        value = direction.value
        xp = array_namespace(value)
        size = norm(value)
        scale = length * self.weight_norm / xp.where(size > 0, size, xp.ones_like(size))
        held = reduce(or_, self.causes().values())
        delta = xp.where(held, xp.zeros_like(value), value * xp.astype(scale, value.dtype))
        bound = self.filter.output_change(delta, self.input_norm)
        self.bound = bound if self.bound is None else self.bound + bound
        self.delta = delta if self.delta is None else self.delta + delta
        block = self.block
        if block.bias is None:
            return [Move(block.parameter, block.layout, delta)]
        index, layout = block.bias
        return [
            Move(block.parameter, block.layout, delta[..., :-1]),
            Move(index, layout, delta[..., -1]),
        ]

    def measure(self, lin: Linearization, *, sample: bool) -> None:
        """Measure the output change ``||delta X^T||`` on the inputs of ``lin``.

        Args:
            lin: The linearization before the move.
            sample: Take ``SAMPLED_ROWS`` rows, scaled to all, instead of every row.
        """
        if self.delta is None:
            return
        parts, seen = [], 0
        for rows in self._rows(lin, sample=sample):
            parts.append(norm(rows @ array_namespace(rows).matrix_transpose(self.delta)))
            seen += rows.shape[-2]
        self.change = joint_norm(parts) * (self.samples / seen) ** 0.5

    def _rows(self, lin: Linearization, *, sample: bool) -> Iterator[Array]:
        for index in self.block.sites:
            for chunk in lin.sites[index].rows():
                rows = (
                    chunk[..., :: max(1, chunk.shape[-2] // SAMPLED_ROWS), :] if sample else chunk
                )
                rows = widen(rows)
                yield rows if self.block.bias is None else with_column(rows, 1.0)
                if sample:
                    return

    def report(self) -> LayerReport:
        """Return what happened to the block, as plain numbers."""
        null_dim, features = int(self.null_dim()), self.filter.space.features
        stack = prod(self.filter.space.basis.shape[:-2])
        moved = 0.0 if self.delta is None else float(norm(self.delta) / self.weight_norm)
        reason = next((WORDS[cause] for cause, holds in self.causes().items() if holds), "")
        if not reason and self.direction is None:
            reason = WORDS["still"]
        output = max(float(self.output_norm), 1e-30)
        return LayerReport(
            name=self.block.name,
            kind=self.kind,
            in_features=features,
            samples=self.samples,
            rank=stack * features - null_dim,
            null_dim=null_dim,
            moved=moved,
            output_change_bound=0.0 if self.bound is None else float(self.bound) / output,
            output_change=0.0 if self.change is None else float(self.change) / output,
            reason="" if moved else reason,
        )


def make_layer(
    block: Block,
    graph: LayerGraph,
    lin: Linearization,
    weights: Sequence[Array],
    config: TeleportConfig,
) -> Layer:
    """Check that a block's uses were all seen, and build its null space."""
    sites = [lin.sites[i] for i in block.sites]
    gradient = lin.gradients[block.parameter]
    hidden: Array = False
    if gradient is not None:
        gradient = graph.read(block.parameter, gradient, block.layout)
        hidden = explained(block, gradient, lin) > MISMATCH[bits(lin)]
    parts = [graph.read(block.parameter, weights[block.parameter], block.layout)]
    if block.bias is not None:
        parts.append(graph.read(block.bias[0], weights[block.bias[0]], block.bias[1]))
    return Layer(
        block=block,
        kind=sites[0].kind,
        samples=sum(site.samples for site in sites),
        filter=make_filter(block, lin, config),
        hidden=hidden,
        weight_norm=joint_norm(parts),
        input_norm=joint_norm([site.inputs for site in sites]),
        output_norm=joint_norm([site.output_norm for site in sites]),
    )


def make_filter(block: Block, lin: Linearization, config: TeleportConfig) -> Filter:
    """Build the null-space filter of a block from the inputs of all its sites."""
    sites = [lin.sites[i] for i in block.sites]
    samples = sum(site.samples for site in sites)
    chunks = (chunk for site in sites for chunk in site.rows())
    bias = block.bias is not None
    space = row_space(chunks, samples, bias=bias, spectrum=config.threshold > 0)
    return threshold_filter(space, config.threshold)
