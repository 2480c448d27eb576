"""The teleport itself.

    linearize -> blocks -> null spaces -> (tangents -> directions -> move) x steps -> keep or undo

Every block takes the step that gains most to first order within its own radius: its projected
direction, scaled to ``radius * ||W||``. The objective is unbounded on the level set (it grows with
the square of the step), so there is always a radius.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from enum import IntEnum

from array_api_compat import is_lazy_array

from nullport import _cost as cost
from nullport._arrays import Array, Norms, joined, known, namespace, plain
from nullport._ascent import Ascent
from nullport._capture import BIAS, Excluded, capture
from nullport._config import Objective, TeleportConfig
from nullport._factored import known_by_site, length
from nullport._graph import LayerGraph, Linearization
from nullport._layer import Layer, make_layer
from nullport._objective import Vector, pull
from nullport._report import Cause, LayerReport, TeleportReport
from nullport._tangent import Engine
from nullport._verdict import Look, first, look, verdict

AUTO_RADIUS = 0.1
"""Radius of ``"auto"`` when nothing is known of the optimizer."""


def teleport(
    graph: LayerGraph,
    config: TeleportConfig | None = None,
    *,
    engine: Engine | None = None,
    radius: float | Array | None = None,
) -> TeleportReport:
    """Move the weights of ``graph`` inside the null space of their inputs (Wu et al., 2025).

    Args:
        graph: The network, its loss and the captured batch.
        config: Settings; the defaults if None.
        engine: Tangent engine that remembers earlier teleports of the same network.
        radius: Relative length of the move, which may be traced, where the configuration leaves
            it open: the trust region's.

    Returns:
        The report. If the move was refused the weights are bit for bit as before.

    Raises:
        ValueError: If no weight of the network is used by a recognised linear map, or the loss is
            not a function of the weights alone. The weights are bit for bit as before.
    """
    config = config or TeleportConfig()
    try:
        return _Run(graph, config, engine or Engine(config.tangent), trusted=radius)()
    except BaseException:
        graph.restore()
        raise


def inspect(graph: LayerGraph, config: TeleportConfig | None = None) -> list[LayerReport]:
    """Return what a teleport would find at every weight, without moving any.

    Raises:
        ValueError: If no weight of the network is used by a recognised linear map.
    """
    config = config or TeleportConfig()
    config = replace(config, objective="grad_norm")  # the null space is the same for all of them
    run = _Run(graph, config, Engine(config.tangent))
    lin = _finite(graph.linearize())
    run.prepare(lin)
    run.ascent(lin, last=False)
    return run.layer_reports()


def _finite(lin: Linearization) -> Linearization:
    if known(~namespace(lin.loss).isfinite(lin.loss)):
        msg = f"the closure returned loss {float(lin.loss)}; a teleport needs a finite loss"
        raise ValueError(msg)
    return lin


@dataclass
class _Run:
    """State of one teleport."""

    graph: LayerGraph
    config: TeleportConfig
    engine: Engine
    layers: list[Layer] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    cost: float = cost.GRADIENT
    scale: Array | None = None
    grad_norm: Array | None = None
    trusted: float | Array | None = None
    norms: Norms | None = None
    along: dict[int, int] = field(default_factory=dict)

    def __call__(self) -> TeleportReport:
        start = time.perf_counter()
        graph, config = self.graph, self.config
        lin = _finite(graph.linearize(again=config.steps > 1))
        before = look(graph, lin.loss, lin.gradients, armijo=self._armijo, screen=True)
        stops: list[tuple[IntEnum, Array]] = [
            (Cause.INFINITE, ~namespace(lin.loss).isfinite(lin.loss)),
            (Cause.GRADIENT, ~namespace(lin.loss).isfinite(before.grad_norm)),
            (Cause.SCREEN, before.overshoots()),
        ]
        if known(first(stops) > 0):
            return self._report(start, before, before, first(stops))
        self.prepare(lin)
        self.grad_norm = before.grad_norm
        for remaining in reversed(range(config.steps)):
            ascent = self.ascent(lin, last=not remaining)
            lin.gradients.clear()  # not needed again, and as large as the weights
            graph.move(ascent.moves(self.radius / config.steps))
            self.grad_norm = None
            if remaining:
                lin = self._linearized(again=remaining > 1 and self._exact)
                self.cost += cost.BACKWARD if lin.reused else cost.GRADIENT
                if not self._exact:  # an inexact step changes the inputs of deeper layers
                    self._forget_null_spaces()
        stops.append((Cause.STILL, self._still(before)))
        if known(stops[-1][1]):
            return self._report(start, before, before, first(stops))
        for layer in self.layers:
            layer.measure(lin)
        # From here on nothing but the loss is asked for: let go of all that is as large as inputs.
        del lin, ascent
        self._forget_null_spaces()
        graph.release()
        loss, gradients = graph.gradient()
        self.cost += cost.GRADIENT
        after = look(graph, loss, gradients, armijo=self._armijo)
        code = verdict(before, after, config.max_loss_change)
        stop = first(stops)
        code = namespace(code).where(stop > 0, stop, code)
        return self._report(start, before, after, code)

    def _linearized(self, *, again: bool) -> Linearization:
        """Return the linearization after a step; nobody asks for gradients that sites know."""
        if not self.along or self.engine.used != "fd":
            return self.graph.linearize(unchanged=self._exact, again=again)
        return self.graph.linearize(unchanged=self._exact, again=again, omit=self.along)

    def _still(self, before: Look) -> Array:
        """Whether no weight has moved, 0-d bool."""
        lengths = [layer.length for layer in self.layers if layer.length is not None]
        xp = namespace(before.loss)
        if not lengths:
            return xp.zeros_like(before.loss) == 0
        return xp.all(xp.stack(lengths) == 0)

    @property
    def _armijo(self) -> bool:
        """Whether the optimizer's step is tested on the captured batch.

        ``look_ahead`` bounds itself, and so does its control; others are unbounded.
        """
        return self.objective not in ("look_ahead", "others")

    @property
    def objective(self) -> str | Objective:
        """The objective, with ``"auto"`` resolved."""
        if self.config.objective != "auto":
            return self.config.objective
        both = self.graph.has_optimizer and self.graph.has_others
        return "look_ahead" if both else "grad_norm"

    def _report(self, start: float, before: Look, after: Look, cause: Array) -> TeleportReport:
        """Keep or undo the move, and say so."""
        self.graph.settle(cause == 0)
        looks = before.cost if before is after else before.cost + after.cost
        return TeleportReport(
            loss_before=plain(before.loss),
            loss_after=plain(after.loss),
            guard_before=None if before.guard is None else plain(before.guard),
            guard_after=None if after.guard is None else plain(after.guard),
            grad_norm_before=plain(before.grad_norm),
            grad_norm_after=plain(after.grad_norm),
            radius=self.radius,
            cause=plain(cause),
            seconds=0.0 if is_lazy_array(before.loss) else time.perf_counter() - start,
            cost=self.cost + looks,
            tangent=self.engine.used,
            layers=self.layer_reports(),
        )

    @property
    def _exact(self) -> bool:
        """Whether no layer gives up any of its output, so that activations stay."""
        return not any(layer.inexact for layer in self.layers)

    @property
    def radius(self) -> float | Array:
        """Relative length of the whole move."""
        if self.config.radius != "auto":
            return self.config.radius
        return AUTO_RADIUS if self.trusted is None else self.trusted

    def prepare(self, lin: Linearization) -> None:
        """Find the layers that may move."""
        blocks, self.excluded = capture(self.graph.parameters, lin.uses, self.config)
        if not lin.sites:
            reasons = "; ".join(f"{e.name}: {e.reason}" for e in self.excluded[:5])
            msg = f"no weight of the model is used by a recognised linear map ({reasons})"
            raise ValueError(msg)
        weights = self.graph.weights()
        norms = self.norms = Norms(weights)
        reached = [b for b in blocks if any(lin.sites[i].samples for i in b.sites)]
        if blocks and not reached:
            msg = "the captured batch has 0 samples; a teleport needs at least 1 sample"
            raise ValueError(msg)
        for block in blocks:
            if block not in reached:
                self.excluded.append(Excluded(block.name, "no sample reaches it", block.sites))
        for block in reached:
            self.layers.append(make_layer(block, self.graph, lin, weights, norms, self.config))
        if self.objective == "grad_norm":
            self.along = known_by_site(self.layers, lin)

    def ascent(self, lin: Linearization, *, last: bool) -> Ascent:
        """Return a step with the directions that the objective asks for at ``lin``."""
        wish = pull(self.objective, self.graph, lin.gradients)
        step = None if wish.v is None else self._tangent_step(wish.v, lin)
        ascent = Ascent(
            self.graph, self.layers, lin, self.config, self.radius, self.along, last=last
        )
        ascent.directions(wish, step, self.engine)
        self.cost += wish.cost + ascent.cost
        return ascent

    def _tangent_step(self, v: Vector, lin: Linearization) -> Array:
        """Return ``||w|| / ||v||``, 0-d."""
        if self.scale is None:
            assert self.norms is not None  # made with the layers
            self.scale = joined([self.norms[i] for i, a in enumerate(v) if a is not None])
        size = self.grad_norm if v is lin.gradients else None
        size = length(v, lin, self.along) if size is None else size
        xp = namespace(size)
        return self.scale / xp.where(size > 0, size, xp.ones_like(size))

    def _forget_null_spaces(self) -> None:
        for layer in self.layers:
            layer.filter = None

    def layer_reports(self) -> list[LayerReport]:
        """Return one report per weight that is used by a linear map."""
        moved = [layer.report() for layer in self.layers]
        still = [LayerReport(e.name, note=e.reason) for e in self.excluded if e.reason != BIAS]
        return moved + still
