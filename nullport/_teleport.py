"""The teleport itself.

    linearize -> layers -> (objective -> tangents -> directions -> move) x steps -> keep or undo

Every layer takes the step that gains most to first order within its own radius: its projected
direction, scaled to ``radius * ||W||``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from nullport import _arrays as ar
from nullport import _verdict as judge
from nullport import network as net
from nullport._arrays import Array, Dense, Vector
from nullport._capture import Layer, Norms, factors, find_layers, lazy_norms
from nullport._config import TeleportConfig
from nullport._direction import Directions
from nullport._nullspace import NullSpace
from nullport._objective import (
    JUDGED,
    RESCALING,
    chosen,
    follows,
    mean_gradient,
    pull,
    readable,
    settled,
    vanishing,
)
from nullport._report import Cause, Code, Hold, LayerReport, TeleportReport
from nullport._step import Found, Moved, factors_of, radius_of, step_of
from nullport._tangent import Engine
from nullport._verdict import Look
from nullport.network import Change, LayerGraph, Linearization


class Outcome(NamedTuple):
    """What a teleport leaves behind.

    Attributes:
        report: What it did.
        gradient: Loss and gradient at the weights that were settled on, which the training step
            may use; None unless the graph is ``repeatable``.
    """

    report: TeleportReport
    gradient: tuple[Array, Dense] | None


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
            it open.

    Returns:
        The report. If the move was refused the weights are bit for bit as before.

    Raises:
        TypeError: If ``config`` is no ``TeleportConfig``.
        ValueError: If no weight of the network is used by a recognised linear map, the objective
            cannot be computed, or the loss is not a function of the weights alone. The weights
            are bit for bit as before.
    """
    return run(graph, config, engine=engine, radius=radius).report


def run(
    graph: LayerGraph,
    config: TeleportConfig | None = None,
    *,
    engine: Engine | None = None,
    radius: float | Array | None = None,
) -> Outcome:
    """Teleport, and return the gradient of the training step too; arguments as :func:`teleport`."""
    config = TeleportConfig.checked(config)
    with graph.exact():
        try:
            attempt = _Run(graph, config, engine or Engine(config.tangent), radius)
            return graph.collective.attempt(attempt)
        except BaseException:
            graph.keep(0.0)
            raise


def inspect(graph: LayerGraph, config: TeleportConfig | None = None) -> list[LayerReport]:
    """Return what a teleport would find at every weight, without moving any.

    Null spaces and directions are those of the objective of a teleport, or of ``"grad_norm"``
    where the graph does not know what that objective reads.

    Raises:
        TypeError: If ``config`` is no ``TeleportConfig``.
        ValueError: If no weight of the network is used by a recognised linear map.
    """
    config = TeleportConfig.checked(config)
    with graph.exact():
        attempt = _Run(graph, config, Engine(config.tangent), None)
        return graph.collective.attempt(attempt.look)


def _finite(loss: Array) -> None:
    if ar.known(~ar.namespace(loss).isfinite(loss)):
        msg = f"the closure returned loss {float(loss)}; a teleport needs a finite loss"
        raise ValueError(msg)


def _operations(lin: Linearization) -> float:
    """Return the floating-point operations of the products in a gradient."""
    pairs = [(u.layout, u.site) for u in lin.uses if u.role == "weight"]
    known = [(layout, i) for layout, i in pairs if layout is not None and i is not None]
    return sum(6.0 * layout.size * lin.sites[i].samples for layout, i in known)


@dataclass
class _Run:
    """State of one teleport; ``given`` is a radius, where the settings leave it open."""

    graph: LayerGraph
    config: TeleportConfig
    engine: Engine
    given: float | Array | None
    layers: list[Layer] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    spaces: dict[int, NullSpace] = field(default_factory=dict)
    found: dict[int, Found] = field(default_factory=dict)
    moved: dict[int, Moved] = field(default_factory=dict)
    lent: list[Linearization] = field(default_factory=list)
    cost: Any = net.GRADIENT
    tangent: str = ""

    def __post_init__(self) -> None:
        """Resolve what the configuration leaves open."""
        self.shrunk: Array | float = math.nan
        self.objective = chosen(self.config.objective, self.graph, np.float64(0))
        self.radius = radius_of(self.config, 1, self.given)
        self.scale: Array | None = None
        self._grad_norm: Array | None = None
        self._whole: Sequence[Array] | None = None
        self._step_ahead: Dense | None = None

    def __call__(self) -> Outcome:
        start, graph = time.perf_counter(), self.graph
        lin = graph.linearize(again=self.config.steps > 1)
        joint = self.joint(lin)
        _finite(joint.loss)
        self.choose(lin)
        one = _operations(lin)
        self.cost += graph.toll.begun(len(lin.sites), one)
        xp, healthy = ar.namespace(joint.loss), None
        if self.config.objective == "auto" and self.objective == "look_ahead":
            healthy = ~follows(graph, [ar.dense(g) for g in joint.gradients])
        if graph.has_optimizer:
            self._step_ahead = graph.optimizer_step([ar.dense(g) for g in joint.gradients])
        before = self._look(joint.loss, joint.gradients, screen=True, step=self._step_ahead)
        self.cost += before.cost
        stops: dict[Code, Array] = {
            Cause.APART: self._apart(joint.loss),
            Cause.INFINITE: ~xp.isfinite(joint.loss),
            Cause.GRADIENT: ~xp.isfinite(before.grad_norm),
            Cause.SCREEN: before.overshoots(),
        }
        if healthy is not None:
            stops[Cause.HEALTHY] = healthy
        first = (joint.loss, list(map(ar.dense, joint.gradients))) if graph.repeatable else None
        if not ar.known(judge.first(stops) > 0):
            self.prepare(joint)
            self._grad_norm, self.lent = before.grad_norm, [joint]
            del lin, joint
            if self.layers:
                self._ascend()
            lengths = [m.length for m in self.moved.values()] or [xp.zeros_like(before.loss)]
            stops[Cause.STILL] = xp.all(xp.stack(lengths) == 0)
        stop = judge.first(stops)
        if ar.known(stop > 0):
            return self._settle(start, before, before, stop, first, first)
        self.spaces.clear()
        graph.release()
        after, last, code = self._judged(before)
        return self._settle(start, before, after, xp.where(stop > 0, stop, code), first, last)

    def look(self) -> list[LayerReport]:
        """Return what a teleport would find at every weight."""
        lin = self.joint(self.graph.linearize())
        _finite(lin.loss)
        self.choose(lin)
        if not readable(self.objective, self.graph):
            self.objective = "grad_norm"
        self.prepare(lin)
        self.lent = [lin]
        del lin
        self.directions(last=True)
        return self.layer_reports()

    def joint(self, lin: Linearization) -> Linearization:
        """Return a linearization with loss and gradients of all replicas together."""
        together = self.graph.collective
        gradients = together.gradients(lin.gradients, self.graph.weights())
        return replace(lin, loss=together.mean(lin.loss), gradients=gradients)

    def _apart(self, like: Array) -> Array:
        """Whether the weights of the replicas differ, 0-d bool."""
        if self.graph.collective.size > 1:
            return self.graph.collective.apart(self.graph.weights())
        return ar.namespace(like).zeros_like(like) != 0

    def choose(self, lin: Linearization) -> None:
        """Settle on the objective, and on the settings that come with it."""
        if all(self.graph.collective.gather(bool(lin.sites))):
            self.shrunk = vanishing(lin.sites, self.graph.collective)
            self.objective = chosen(self.config.objective, self.graph, self.shrunk)
        self.config = settled(self.config, self.objective)

    def _look(
        self, loss: Array, gradients: Vector, *, screen: bool = False, step: Dense | None = None
    ) -> Look:
        """Measure a point as the objective asks; ``step`` is the optimizer's, if that is known."""
        armijo = self.objective not in (*JUDGED, *RESCALING)  # those bound themselves
        return judge.look(self.graph, loss, gradients, armijo=armijo, screen=screen, step=step)

    def prepare(self, lin: Linearization) -> None:
        """Find the layers that may move, at the first linearization."""
        self.norms: Norms = lazy_norms(self.graph.weights)
        self.layers, self.excluded = find_layers(self.graph, lin, self.config, self.norms)
        self.radius = radius_of(self.config, len(self.layers), self.given)

    def _ascend(self) -> None:
        """Take all steps."""
        graph, steps = self.graph, self.config.steps
        for remaining in reversed(range(steps)):
            checked = self.directions(last=not remaining)
            graph.move(self._step())
            if remaining:
                again = remaining > 1 and self._exact
                lin = graph.linearize(unchanged=self._exact, again=again, checked=checked)
                self.cost += net.BACKWARD if lin.reused else net.GRADIENT
                if not self._exact:  # an inexact step changes the inputs of deeper layers
                    self.spaces.clear()
                self.lent = [self.joint(lin)]
                del lin

    def directions(self, *, last: bool) -> bool:
        """Find the direction of every layer that the objective asks for.

        The linearization is taken from ``lent`` and held by nobody else: sites are freed as
        their tangents arrive.

        Returns:
            Whether sites are known to account for gradients, which then need not be formed.
        """
        lin, graph = self.lent.pop(), self.graph
        sparse = factors(self.layers, lin, graph.weights()) if graph.factors else {}
        plain_gradient = self.objective == "grad_norm" and graph.collective.size == 1
        along = [sparse.get(i, g) if plain_gradient else g for i, g in enumerate(lin.gradients)]
        known, self._step_ahead = self._step_ahead, None  # of the first of several steps
        wish = pull(self.objective, graph, along, (self.layers, lin.sites), known)
        del known
        self._whole = wish.whole
        self.cost += wish.cost
        step = None if wish.v is None else self._relative(wish.v)
        bits, replay_cost = lin.bits, lin.replay_cost

        def collector(at: Linearization) -> Directions:
            return Directions(
                graph,
                self.layers,
                at,
                self.config,
                length=self.radius,
                scale=1.0 if step is None else step,
                direct=wish.direct,
                spaces=self.spaces,
                keep=not last and self._exact,
            )

        collected = collector(lin)
        del lin
        while wish.v is not None and step is not None:
            try:
                ask = partial(self.engine, graph, wish.v, step, collected, bits, replay_cost)
                self.cost += graph.collective.attempt(ask) + net.FORWARD
                self.tangent = self.engine.choose(bits)
                break
            except net.TangentUnavailable:
                if not self.engine.give_up(bits):
                    raise
                if collected.begun:  # sites were freed on the way
                    collected = collector(graph.linearize())
                    self.cost += net.GRADIENT
        collected.finish()
        self.spaces, self.found = collected.spaces, collected.found
        one = sum(6.0 * layer.block.layout.size * layer.samples for layer in self.layers)
        self.cost += collected.work / max(1.0, one)  # in operations of one gradient
        size = float(sum(each.size for layer in self.layers for _, each in layer.block.parts))
        self.cost += graph.toll.moved(len(self.layers), size, collected.factored, one)
        return bool(sparse)

    def _relative(self, v: Vector) -> Array:
        """Return ``||w|| / ||v||``, 0-d; the norm of the first gradient is known already."""
        if self.scale is None:
            self.scale = ar.joined([self.norms(i) for i, a in enumerate(v) if a is not None])
        size = self._grad_norm if self.objective == "grad_norm" else None
        self._grad_norm = None
        return self.scale / ar.positive(ar.joint_norm(v) if size is None else size)

    def _step(self) -> Iterator[Change]:
        """Yield the changes of a step, one layer at a time."""
        moving = [b for b, found in sorted(self.found.items()) if found.delta is not None]
        if not moving:
            return
        layers, found = [self.layers[b] for b in moving], [self.found[b] for b in moving]
        reach = self.radius / self.config.steps
        whole = None if self._whole is None else [self._whole[b] for b in moving]
        factor, lengths = factors_of(layers, found, reach, self.config, whole=whole)
        for i, b in enumerate(moving):
            moved, changes = step_of(layers[i], found[i], factor[i], lengths[i], self.graph)
            self.moved[b] = self.moved[b] + moved if b in self.moved else moved
            # The direction is as large as the weight, and is not needed again.
            found[i] = self.found[b] = replace(found[i], delta=None, sample=())
            yield from changes

    def _judged(self, before: Look) -> tuple[Look, Any, Array]:
        """Return the point that is reached, its gradient, and why it is refused (0-d code).

        A move that went too far is tried once more, shorter.
        """
        graph = self.graph
        after, gradient, code = self._looked(before)
        self.cost += net.GRADIENT + after.cost
        share = judge.shorter(before, after, code, self.config)
        if ar.known(share == 0):
            return after, gradient, code
        xp = ar.namespace(share)

        def again(_: Any) -> Any:
            graph.keep(share)
            return (*self._looked(before), share)

        values = (after, gradient, code, xp.ones_like(share))
        after, gradient, code, kept = graph.when(share > 0, again, values)
        tried = xp.astype(share > 0, share.dtype)
        self.cost = self.cost + ar.plain(tried) * (net.GRADIENT + after.cost)
        self.radius = self.radius * ar.plain(kept)
        self.moved = {b: moved.shortened(kept) for b, moved in self.moved.items()}
        return after, gradient, code

    def _looked(self, before: Look) -> tuple[Look, Any, Array]:
        loss, gradients = mean_gradient(self.graph, "batch", None)
        after = self._look(loss, gradients)
        known, gains = self.graph.has_optimizer, self.objective not in RESCALING
        code = judge.verdict(before, after, self.config, optimizer=known, gains=gains)
        kept = (loss, list(gradients)) if self.graph.repeatable else None
        return after, kept, code

    def _settle(
        self, start: float, before: Look, after: Look, cause: Array, first: Any, last: Any
    ) -> Outcome:
        """Keep or undo the move, and say so."""
        xp, apart = ar.namespace(cause), self._apart(cause) & (cause == 0)
        cause = xp.where(apart, xp.full_like(cause, int(Cause.APART)), cause)
        accepted = ~self.graph.collective.agree(cause != 0)
        if ar.traced(cause):
            share = xp.astype(accepted, before.grad_norm.dtype)
        else:
            accepted, share = bool(accepted), float(accepted)
        self.graph.keep(share)
        report = TeleportReport(
            loss_before=ar.plain(before.loss),
            loss_after=ar.plain(after.loss),
            guard_before=ar.plain(before.guard),
            guard_after=ar.plain(after.guard),
            grad_norm_before=ar.plain(before.grad_norm),
            grad_norm_after=ar.plain(after.grad_norm),
            radius=self.radius,
            cause=ar.plain(cause),
            seconds=0.0 if ar.traced(before.loss) else time.perf_counter() - start,
            cost=self.cost,
            tangent=self.tangent,
            shrinkage=ar.plain(self.shrunk),
            layers=self.layer_reports(ar.plain(share)),
        )
        return Outcome(report, _either(accepted, last, first))

    @property
    def _exact(self) -> bool:
        """Whether no layer gives up any of its output, so that activations stay."""
        return all(layer.exact for layer in self.layers)

    def layer_reports(self, kept: Array | float = 1.0) -> list[LayerReport]:
        """Return one report per weight that is used by a linear map; ``kept`` is 0 if undone."""
        seen = [self._report(b, kept) for b in self.found]
        still = [LayerReport(name, note=reason) for name, reason in self.excluded.items()]
        return seen + still

    def _report(self, b: int, kept: Array | float) -> LayerReport:
        """Return what happened to a layer."""
        layer, found, moved = self.layers[b], self.found[b], self.moved.get(b)
        block, output = layer.block, ar.positive(layer.output_norm)
        tests = found.obstacles(layer)
        if self._whole is not None:
            tests[Hold.HEALTHY] = self._whole[b] == 0
        if moved is None:
            moved = Moved(*[0 * layer.weight_norm] * 6)
        else:
            tests[Hold.SHORT] = moved.length == 0
        xp, hold = ar.namespace(layer.weight_norm), judge.first(tests)
        return LayerReport(
            name=block.name,
            kind=layer.kind,
            in_features=block.features,
            samples=layer.samples,
            rank=ar.plain(prod(n for n, _ in block.layout.stack) * block.features - found.free),
            null_dim=ar.plain(found.free),
            moved=ar.plain(kept * moved.length / ar.positive(layer.weight_norm)),
            output_change_bound=ar.plain(kept * moved.certificate / output),
            output_change=ar.plain(kept * moved.measured / output),
            hold=ar.plain(xp.where(moved.length > 0, xp.zeros_like(hold), hold)),
        )


def _either(accepted: Array | bool, after: Any, before: Any) -> Any:
    """Return the loss and gradient after a move where it is ``accepted``, else those before."""
    if isinstance(accepted, bool) or after is None or before is None:
        return after if accepted is True else before
    xp = ar.namespace(accepted)
    (new, news), (old, olds) = after, before
    pairs = zip(news, olds, strict=True)
    gradients = [b if a is None or b is None else xp.where(accepted, a, b) for a, b in pairs]
    return xp.where(accepted, new, old), gradients
