"""One block on its way through a teleport: its null space, its moves, what to report of it.

All numbers stay 0-d arrays until the report is made, so that nothing here waits for a device or
asks for a value under jit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from math import prod

from nullport._arrays import (
    Array,
    Norms,
    joined,
    joint_norm,
    namespace,
    norm,
    plain,
    widen,
)
from nullport._budget import BudgetFilter
from nullport._capture import Block, explained, without_hidden_bias
from nullport._config import TeleportConfig
from nullport._direction import Direction
from nullport._filter import is_tight, make_filter
from nullport._found import Found, look_at, output_change
from nullport._gradient_site import layer_input
from nullport._graph import LayerGraph, Linearization, Move
from nullport._projection import Filter
from nullport._report import Hold, LayerReport
from nullport._tangent import bits
from nullport._verdict import first

MISMATCH = {16: 0.05, 32: 1e-4, 64: 1e-9}
"""Largest relative part of a gradient, by dtype bits, that the sites may leave unexplained."""


@dataclass
class Layer:
    """A block, and what is told of it in the end.

    Attributes:
        block: The weights.
        kind: The operation they are used in.
        samples: Rows of input.
        hidden: Whether a use of the weights was missed (0-d bool).
        weight_norm: ``||W||``, bias included, 0-d.
        output_norm: ``||X W^T||``, without the bias, 0-d.
        input_norm: ``||X||``, 0-d.
        inexact: Whether any of the output may change.
        kept: Whether that is measured before moving, to keep to a budget.
        filter: The null space, while it is needed; the largest thing here.
        free: Number of free directions over the whole stack, 0-d; None before there is a filter.
        empty: Whether nothing can move (0-d bool); None before there is a filter.
        rounding: What rounding may add to the output change per unit of length, 0-d.
        limit: Output change that the budget allows a step, 0-d, or None.
        found: The direction of the step that is to be taken; as large as the weights.
        size: ``||N||`` of the last direction, 0-d; None if no tangent reached the block.
        share: What the projection left of it, relative, 0-d.
        steps: Steps whose output change has to be measured together, after the last one.
        outputs: Output change on a few rows, summed over steps.
        seen: Number of these rows.
        length: Length of all steps, 0-d.
        bound: Bound on ``||dW X^T||`` so far, without rounding, 0-d.
        change: The same, measured, 0-d.
    """

    block: Block
    kind: str
    samples: int
    hidden: Array
    weight_norm: Array
    output_norm: Array
    input_norm: Array
    inexact: bool
    kept: bool
    filter: Filter | BudgetFilter | None = None
    free: Array | None = None
    empty: Array | None = None
    rounding: Array | None = None
    limit: Array | None = None
    found: Found | None = None
    size: Array | None = None
    share: Array | None = None
    steps: list[Direction] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    seen: int = 0
    length: Array | None = None
    bound: Array | float = 0.0
    change: Array | None = None

    def build(
        self, lin: Linearization, config: TeleportConfig, radius: float | Array
    ) -> Filter | BudgetFilter:
        """Build the null space, from the inputs of ``lin``."""
        length = radius * self.weight_norm
        self.filter = made = make_filter(self.block, lin, config, self.output_norm, length)
        self.free, self.empty = made.free, made.empty
        self.rounding = made.rounding(self.input_norm)
        self.limit = made.change if isinstance(made, BudgetFilter) else None
        return made

    def finish(self, direction: Direction | None, lin: Linearization, *, only: bool) -> None:
        """Take a direction, or None if no tangent arrived; ``only`` if it is the only step's."""
        self.found = self.size = self.share = None
        if direction is not None and self.filter is not None:
            self.size, self.share = direction.size, direction.share
            self.found = look_at(
                direction,
                self.block,
                self.filter,
                lin,
                inexact=self.inexact,
                measured=self.kept or only,
            )

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
            tests += list(obstacles(self.size, self.share).items())
            if self.length is not None:
                tests.append((Hold.SHORT, self.length == 0))
        return first(tests)

    def step(self, factor: Array, reach: Array, *, only: bool) -> list[Move]:
        """Take a step: the direction times ``factor``, of length ``reach``; none where it is 0."""
        found, self.found = self.found, None
        assert found is not None  # take_steps has asked
        direction = found.direction
        xp = namespace(direction.right)
        factor = xp.astype(factor, direction.right.dtype, copy=False)
        right = xp.where(factor > 0, direction.right * factor, xp.zeros_like(factor))
        step = replace(direction, right=right)
        unit = found.change if self.kept else found.bound
        if unit is not None:
            self.bound = self.bound + unit * factor
        if only and found.change is not None:
            self.change = found.change * factor
        elif self.inexact:
            self.steps.append(step)
        sample = [step.outputs(rows) for rows in found.sample]
        pairs = zip(self.outputs, sample, strict=True)
        self.outputs = [a + b for a, b in pairs] if self.outputs else sample
        self.seen = found.rows
        self.length = reach if self.length is None else self.length + reach
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
        """Measure the output change ``||dW X^T||`` of all steps, before weights are judged.

        Where the null space is exact, about ``SAMPLED_ROWS`` rows stand for all. Several inexact
        steps are measured together on the inputs of ``lin``.
        """
        if self.outputs:
            self.change = joint_norm(self.outputs) * (self.samples / self.seen) ** 0.5
        elif self.steps:
            total = [step.dense() for step in self.steps]
            self.change = output_change(self.block, lin, sum(total[1:], start=total[0]))
        self.steps.clear()
        self.outputs.clear()

    def report(self) -> LayerReport:
        """Return what happened to the block."""
        stack = prod(size for size, _ in self.block.layout.stack)
        xp = namespace(self.weight_norm)
        length = xp.zeros_like(self.weight_norm) if self.length is None else self.length
        output, free = _positive(self.output_norm), self.free
        assert free is not None  # a report comes after the first step
        return LayerReport(
            name=self.block.name,
            kind=self.kind,
            in_features=self.block.features,
            samples=self.samples,
            rank=plain(stack * self.block.features - free),
            null_dim=plain(free),
            moved=plain(length / _positive(self.weight_norm)),
            output_change_bound=plain((self.bound + length * self.rounding) / output),
            output_change=0.0 if self.change is None else plain(self.change / output),
            hold=plain(xp.where(length > 0, xp.zeros_like(hold := self.hold()), hold)),
        )


def _positive(x: Array) -> Array:
    """Return ``x`` where it is positive, else 1: a divisor."""
    xp = namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def obstacles(size: Array, share: Array) -> dict[Hold, Array]:
    """Causes that depend on a direction's norm and on the share the projection left of it."""
    xp = namespace(size)
    return {
        Hold.STILL: size == 0,
        Hold.BROKEN: ~xp.isfinite(size),
        Hold.SPANNED: share < 1e3 * float(xp.finfo(size.dtype).eps),
    }


def make_layer(
    block: Block,
    graph: LayerGraph,
    lin: Linearization,
    weights: Sequence[Array],
    norms: Norms,
    config: TeleportConfig,
) -> Layer:
    """Check that a block's uses were all seen, and measure its weights, inputs and outputs.

    ``norms`` are those of ``weights``.
    """
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
    samples = sum(site.samples for site in sites)
    kept = is_tight(block, samples, config) or config.projection == "none"
    return Layer(
        block=block,
        kind=sites[0].kind,
        samples=samples,
        hidden=mismatch > tolerance,
        weight_norm=_weight_norm(block, graph, weights, norms),
        output_norm=joint_norm([site.output_norm for site in sites]),
        input_norm=input_norm,
        inexact=kept or config.threshold > 0,
        kept=kept,
    )


def _weight_norm(block: Block, graph: LayerGraph, weights: Sequence[Array], norms: Norms) -> Array:
    """Return the norm of a block's weights, bias included, 0-d."""
    parts = [(block.parameter, block.layout)] + ([] if block.bias is None else [block.bias])
    return joined(
        [
            norms[i]
            if layout.size == prod(weights[i].shape)
            else norm(widen(graph.read(i, weights[i], layout)))
            for i, layout in parts
        ]
    )
