"""One ascent step: tangents through the network, and what every layer makes of its own.

A layer is dealt with as its tangent arrives: null space, direction, effect on the outputs. After
that its inputs and cotangents are not needed any more, and in the last step they are let go of, so
that they and the null spaces are never all held together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nullport import _cost as cost
from nullport._arrays import Array, namespace, widen, with_column
from nullport._budget import BudgetFilter
from nullport._capture import Block
from nullport._config import TeleportConfig
from nullport._direction import Accumulator, Direction
from nullport._graph import LayerGraph, Linearization, Move, TangentUnavailable
from nullport._layer import Layer
from nullport._objective import Pull
from nullport._projection import Filter
from nullport._steps import take_steps
from nullport._tangent import Engine


class Ascent:
    """A step from one linearization.

    Attributes:
        cost: Compute used so far, in gradients.
    """

    def __init__(
        self,
        graph: LayerGraph,
        layers: Sequence[Layer],
        lin: Linearization,
        config: TeleportConfig,
        radius: float | Array,
        along: Mapping[int, int],
        *,
        last: bool,
    ) -> None:
        """Prepare a step.

        Args:
            graph: The network.
            layers: Its layers; those that have a null space already keep it.
            lin: The linearization at the present weights.
            config: Settings.
            radius: Relative length of all steps.
            along: By parameter, the site whose gradient is what the objective asks for there.
            last: Whether no step follows.
        """
        self._graph, self._layers, self._lin = graph, layers, lin
        self._config, self._radius, self._along, self._last = config, radius, along, last
        self._only = last and config.steps == 1
        self._work = cost.gradient_work(lin, [layer.block for layer in layers])
        self._users: dict[int, set[int]] = {i: set() for i in range(len(lin.sites))}
        for b, layer in enumerate(layers):
            for site in layer.block.sites:
                self._users[site].add(b)
        self.cost = 0.0

    def directions(self, wish: Pull, step: Array | None, engine: Engine) -> None:
        """Give every layer its direction.

        Args:
            wish: What the objective asks for.
            step: ``||w|| / ||v||``, 0-d, the scale of a finite difference; None without ``v``.
            engine: Computes tangents.

        Raises:
            TangentUnavailable: If no engine can handle this network.
        """
        blocks = [layer.block for layer in self._layers]

        def direct(b: int) -> Array | None:
            return None if wish.direct is None else read(self._graph, blocks[b], wish.direct)

        while True:
            lin = self._lin
            accumulator = Accumulator(blocks, self, lin, direct, self._finished)
            try:
                if wish.v is not None and step is not None:
                    engine(self._graph, lin, wish.v, step, accumulator.receive, self._along)
                    self.cost += engine.cost + cost.KERNEL
                break
            except TangentUnavailable:
                if not engine.give_up():
                    raise
                gone = [*lin.sites, *(lin.gradients[i] for i in self._along)]
                if any(part is None for part in gone):  # the next try needs what was let go
                    again = self._graph.linearize()
                    lin.sites, lin.gradients[:] = again.sites, again.gradients
                    self.cost += cost.GRADIENT
        accumulator.finish()

    def moves(self, length: float | Array) -> Iterator[Move]:
        """Yield the moves of a step of relative length ``length``."""
        return take_steps(self._layers, length, only=self._only)

    def __getitem__(self, b: int) -> Filter | BudgetFilter:
        """Return the null space of a layer, built now if there is none yet."""
        layer = self._layers[b]
        if layer.filter is not None:
            return layer.filter
        made = layer.build(self._lin, self._config, self._radius)
        rows = made.space.rows
        self.cost += (
            cost.null_space_work(layer.block, self._lin, rows, budget=layer.kept) / self._work
        )
        return made

    def _finished(self, b: int, direction: Direction | None) -> None:
        """Take the direction of a layer, and let go of what only it needed."""
        layer = self._layers[b]
        self[b]  # the report tells of the null space also where there is no direction
        layer.finish(direction, self._lin, only=self._only)
        if not self._last or (layer.inexact and not self._only):
            return
        layer.filter = None
        sites: list[Any] = list(self._lin.sites)
        for i in layer.block.sites:
            self._users[i].discard(b)
            sites[i] = sites[i] if self._users[i] else None
        self._lin.sites = sites


def read(graph: LayerGraph, block: Block, vector: Sequence[Array | None]) -> Array | None:
    """Return a block's part of a vector over all parameters, (..., out, features), or None."""
    weight = vector[block.parameter]
    if weight is None:
        return None
    part = widen(graph.read(block.parameter, weight, block.layout))
    if block.bias is None:
        return part
    index, layout = block.bias
    bias = vector[index]
    if bias is None:
        return with_column(part, 0.0)
    column = widen(graph.read(index, bias, layout))[..., None]
    return namespace(part).concat([part, column], axis=-1)
