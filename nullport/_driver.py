"""The teleport itself.

    linearize -> blocks -> null spaces -> (tangents -> directions -> move) x steps -> keep or undo

Every block takes the step that gains most to first order within its own radius: its projected
direction, scaled to ``radius * ||W||``. The objective is unbounded on the level set (it grows with
the square of the step), so there is always a radius.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from nullport import _cost as cost
from nullport._arrays import Array, joint_norm, widen
from nullport._capture import Excluded, capture
from nullport._config import TeleportConfig
from nullport._direction import Accumulator
from nullport._graph import LayerGraph, Linearization, Move
from nullport._layer import Layer, make_filter, make_layer
from nullport._objective import check, resolve
from nullport._report import LayerReport, TeleportReport
from nullport._tangent import Engine

AUTO_RADIUS = 0.1
"""Radius of ``"auto"`` when nothing is known of the optimizer."""


def teleport(
    graph: LayerGraph, config: TeleportConfig | None = None, *, engine: Engine | None = None
) -> TeleportReport:
    """Move the weights of ``graph`` inside the null space of their inputs (Wu et al., 2025).

    Args:
        graph: The network, its loss and the captured batch.
        config: Settings; the defaults if None.
        engine: Tangent engine that remembers earlier teleports of the same network.

    Returns:
        The report. If the move was refused the weights are bit for bit as before.

    Raises:
        ValueError: If no weight of the network is used by a recognised linear map, or the loss is
            not a function of the weights alone. The weights are bit for bit as before.
    """
    config = config or TeleportConfig()
    try:
        return _Run(graph, config, engine or Engine(config.tangent))()
    except BaseException:
        graph.restore()
        raise


def inspect(graph: LayerGraph, config: TeleportConfig | None = None) -> list[LayerReport]:
    """Return what a teleport would find at every weight, without moving any.

    Raises:
        ValueError: If no weight of the network is used by a recognised linear map.
    """
    config = config or TeleportConfig()
    run = _Run(graph, config, Engine(config.tangent))
    lin = graph.linearize()
    run.prepare(lin)
    run.directions(lin, joint_norm([g for g in lin.gradients if g is not None]))
    return run.layer_reports()


@dataclass
class _Run:
    """State of one teleport."""

    graph: LayerGraph
    config: TeleportConfig
    engine: Engine
    layers: list[Layer] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    cost: float = cost.GRADIENT

    def __call__(self) -> TeleportReport:
        start = time.perf_counter()
        graph, config = self.graph, self.config
        first = lin = graph.linearize(again=config.steps > 1 and self._exact)
        self.prepare(first)
        guard_before = graph.guard()
        norms = [_gradient_norm(lin)]
        radius = AUTO_RADIUS if config.radius == "auto" else config.radius
        for remaining in reversed(range(config.steps)):
            self._ascend(lin, norms[-1], radius / config.steps)
            lin = graph.linearize(
                unchanged=remaining > 0 and self._exact, again=remaining > 1 and self._exact
            )
            self.cost += cost.BACKWARD if lin.reused else cost.GRADIENT
            norms.append(_gradient_norm(lin))
            if remaining and not self._exact:
                self._rebuild_filters(lin)
        for layer in self.layers:
            layer.measure(first, sample=self._exact)
        guard_after = graph.guard()
        reason = self._verdict(first.loss, lin.loss, norms, guard_before, guard_after)
        graph.settle(not reason)
        return TeleportReport(
            loss_before=float(first.loss),
            loss_after=float(lin.loss),
            guard_before=None if guard_before is None else float(guard_before),
            guard_after=None if guard_after is None else float(guard_after),
            grad_norm_before=float(norms[0]),
            grad_norm_after=float(norms[-1]),
            radius=radius,
            accepted=not reason,
            reason=reason,
            seconds=time.perf_counter() - start,
            cost=self.cost + (0 if guard_before is None else 2 * cost.FORWARD),
            tangent=self.engine.used,
            layers=self.layer_reports(),
        )

    @property
    def _exact(self) -> bool:
        return self.config.threshold == 0

    def prepare(self, lin: Linearization) -> None:
        """Find the blocks that may move, and the null space of each."""
        blocks, self.excluded = capture(self.graph.parameters, lin.uses, self.config)
        if not lin.sites:
            reasons = "; ".join(f"{e.name}: {e.reason}" for e in self.excluded[:5])
            msg = f"no weight of the model is used by a recognised linear map ({reasons})"
            raise ValueError(msg)
        weights = self.graph.weights()
        work = cost.gradient_work(lin, blocks)
        for block in blocks:
            self.layers.append(make_layer(block, self.graph, lin, weights, self.config))
            self.cost += cost.null_space_work(block, lin) / work

    def directions(self, lin: Linearization, grad_norm: Array) -> Accumulator:
        """Send tangents along the objective's ``v`` through the network."""
        v = resolve(self.config)(lin.gradients)
        check(v, lin.gradients)
        pairs = [(w, a) for w, a in zip(self.graph.weights(), v, strict=True) if a is not None]
        size = grad_norm if v is lin.gradients else joint_norm([a for _, a in pairs])
        scale = joint_norm([w for w, _ in pairs])
        xp = array_namespace(size)
        step = scale / xp.where(size > 0, size, xp.ones_like(size))
        blocks = [layer.block for layer in self.layers]
        accumulator = Accumulator(blocks, [layer.filter for layer in self.layers], lin)
        self.engine(self.graph, lin, v, step, accumulator.receive)
        self.cost += self.engine.cost + cost.KERNEL
        return accumulator

    def _ascend(self, lin: Linearization, grad_norm: Array, length: float) -> None:
        """Take one step of relative length ``length`` in every block that can move."""
        accumulator = self.directions(lin, grad_norm)
        moves: list[Move] = []
        for layer, direction in zip(self.layers, accumulator.result(), strict=True):
            moves += layer.step(direction, length)
        self.graph.move(moves)

    def _rebuild_filters(self, lin: Linearization) -> None:
        """Build the null spaces anew: an inexact step changes the inputs of deeper layers."""
        for layer in self.layers:
            layer.filter = make_filter(layer.block, lin, self.config)

    def _verdict(
        self,
        before: Array,
        after: Array,
        norms: Sequence[Array],
        guard_before: Array | None,
        guard_after: Array | None,
    ) -> str:
        """Return why the move is refused, or an empty string."""
        limit = self.config.max_loss_change
        if all(layer.delta is None for layer in self.layers):
            return "no weight can move"
        reason = _rise("loss", float(before), float(after), limit)
        if not reason and not float(norms[-1]) < float("inf"):
            reason = f"the gradient norm is {float(norms[-1])} at the moved weights"
        if not reason and guard_before is not None and guard_after is not None:
            reason = _rise("guard loss", float(guard_before), float(guard_after), limit)
        return reason

    def layer_reports(self) -> list[LayerReport]:
        """Return one report per weight that is used by a linear map."""
        moved = [layer.report() for layer in self.layers]
        still = [LayerReport(e.name, reason=e.reason) for e in self.excluded]
        return moved + still


def _gradient_norm(lin: Linearization) -> Array:
    return joint_norm([widen(g) for g in lin.gradients if g is not None])


def _rise(name: str, before: float, after: float, limit: float) -> str:
    """Say that a loss rose by more than ``limit`` of its value, or return an empty string."""
    if after - before <= limit * abs(before):
        return ""
    return f"the {name} went from {before:.6g} to {after:.6g}, more than {limit:g} of its value"
