"""Teleports as an optax transformation, around the one that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nullport import Rule, State, TeleportConfig, run
from nullport_jax._collective import Name
from nullport_jax._explicit import unspread
from nullport_jax._graph import JaxGraph
from nullport_jax._meshes import automatic, explicit_axes


class TeleportingState(NamedTuple):
    """State of :func:`teleporting`; a pytree.

    Attributes:
        inner: State of the transformation that trains.
        policy: When the next teleport is due, and what was spent.
        recent: The two batches before this one, if an example was given, and how many are kept.
        accepted: Number of teleports that were kept.
        refused: Number of teleports that were undone.
        cause: Why the last one was refused, a code as in ``TeleportReport.cause``; 0 if not.
    """

    inner: Any
    policy: State
    recent: Any
    accepted: jax.Array
    refused: jax.Array
    cause: jax.Array


def teleporting(
    tx: optax.GradientTransformation,
    loss_fn: Callable[..., Any],
    *,
    every: int | str | Callable[..., Any] = "auto",
    horizon: int = 1000,
    config: TeleportConfig | None = None,
    example: tuple[Any, ...] | None = None,
    has_aux: bool = False,
    axis_name: Name | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Teleport every so often, and train with ``tx`` from the better place.

    Its ``update(updates, state, params, batch=...)`` takes the batch that the gradients are of. It
    has to be the outermost transformation that sees single parameters: inside ``optax.masked`` or
    ``optax.multi_transform`` it raises.

    Args:
        tx: The transformation that trains.
        loss_fn: ``loss_fn(params, *batch)`` returns the loss.
        every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
            refused, and never more than a small share of the compute. Or a function of the
            schedule's state that returns whether one is due, traced.
        horizon: Training steps the run is expected to take.
        config: Settings of each teleport; the defaults if None.
        example: A batch, of which only shapes and dtypes are used. With it the two batches before
            serve as other samples: one to look ahead with, one to have the last word. Without it,
            ``update`` takes them as ``others=`` and ``guard=``; with neither, moves are judged by
            the loss and the optimizer's own step alone.
        has_aux: Whether ``loss_fn`` returns a pair that begins with the loss.
        axis_name: The axis of ``pmap`` or ``shard_map`` along which batches differ, as for
            :func:`nullport_jax.teleport`. ``update`` takes gradients that are averaged over it.

    Returns:
        The transformation. At a teleport its updates are the move and the step of ``tx`` at the
        moved parameters, whose gradient the teleport has just computed.

    Raises:
        TypeError: If ``config`` is no ``TeleportConfig``.
        ValueError: If ``every`` or ``horizon`` is not allowed.
    """
    rule, settings = Rule.parse(every, horizon), TeleportConfig.checked(config)
    made = _Teleporting(tx, loss_fn, rule, settings, example, has_aux, axis_name)
    return optax.GradientTransformationExtraArgs(made.init, made.update)


@dataclass(frozen=True)
class _Teleporting:
    """The two functions of the transformation; attributes as :func:`teleporting` takes them."""

    tx: Any
    loss_fn: Callable[..., Any]
    rule: Rule
    config: TeleportConfig
    example: tuple[Any, ...] | None
    has_aux: bool
    axis_name: Name | None = None

    def init(self, params: Any) -> TeleportingState:
        """Return the state before the first step."""
        _check(params)
        count, recent = jnp.zeros((), jnp.int32), None
        if self.example is not None:
            blank = jax.tree.map(
                lambda a: jnp.zeros(jnp.shape(a), jnp.result_type(a)), self.example
            )
            recent = (blank, blank, count)
        policy = self.rule.start(jnp.zeros((), jnp.float32))
        own = jax.tree.map(jnp.copy, (policy, recent, count, count, count))
        return TeleportingState(self.tx.init(params), *own)  # no buffer twice, to be donated

    def update(
        self,
        updates: Any,
        state: TeleportingState,
        params: Any = None,
        *,
        batch: tuple[Any, ...] | None = None,
        guard: tuple[Any, ...] | None = None,
        others: tuple[Any, ...] | None = None,
        **extra: Any,
    ) -> tuple[Any, TeleportingState]:
        """Return the updates of a step, and of a teleport before it if one is due."""
        _check(params)
        if params is None or batch is None:
            missing = "params" if params is None else "batch"
            msg = f"update() needs {missing}: tx.update(grads, state, params, batch=(x, y))"
            raise ValueError(msg)
        due = self.rule.due(state.policy)
        if state.recent is not None and (guard is None or others is None):
            older, newer, count = state.recent
            due = due & (count >= 2)  # before that they are blank
            guard = older if guard is None else guard
            others = newer if others is None else others
        steps, after = jax.lax.cond(
            due,
            lambda: self._jump(state, params, (batch, guard, others), extra),
            lambda: self._walk(updates, state, params, extra),
        )
        recent = state.recent
        if recent is not None:
            recent = (recent[1], batch, jnp.minimum(recent[2] + 1, 2))
        return steps, after._replace(policy=self.rule.tick(after.policy), recent=recent)

    def _walk(
        self, updates: Any, state: TeleportingState, params: Any, extra: dict[str, Any]
    ) -> tuple[Any, TeleportingState]:
        """Make a step."""
        inner = optax.with_extra_args_support(self.tx)
        steps, after = inner.update(updates, state.inner, params, **extra)
        return steps, state._replace(inner=after)

    def _jump(
        self, state: TeleportingState, params: Any, batches: Any, extra: dict[str, Any]
    ) -> tuple[Any, TeleportingState]:
        """Teleport, and make the step at the parameters that are settled on."""
        own = self
        if explicit_axes():
            own = replace(self, loss_fn=unspread(self.loss_fn, (params, *batches[0])))
        args = (state, params, batches, extra)
        return automatic(lambda *given: (own._jumped(*given), ()), args, (params, state))[0]

    def _jumped(
        self, state: TeleportingState, params: Any, batches: Any, extra: dict[str, Any]
    ) -> tuple[Any, TeleportingState]:
        batch, guard, others = batches
        graph = JaxGraph(
            self.loss_fn,
            params,
            batch,
            guard=guard,
            others=others,
            tx=self.tx,
            opt_state=state.inner,
            has_aux=self.has_aux,
            axis_name=self.axis_name,
        )
        report, found = run(graph, self.config)
        report = graph.first(report)
        assert found is not None  # a JaxGraph is repeatable
        gradient = graph.like_params(found[1])
        if "grad" in extra:  # a line search's: the one that was passed is of other parameters
            extra = extra | {"grad": gradient}
        steps, after = self._walk(gradient, state, graph.params, extra)
        moved = jax.tree.map(lambda new, old, u: (new - old) + u, graph.params, params, steps)
        accepted = jnp.asarray(report.accepted)
        return moved, after._replace(
            # The step's gradient is the teleport's; the caller's, which nobody uses, was made too.
            policy=self.rule.update(state.policy, accepted, report.cost, report.stuck),
            accepted=state.accepted + accepted,
            refused=state.refused + ~accepted,
            cause=jnp.asarray(report.cause, jnp.int32),
        )


def _check(params: Any) -> None:
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        msg = (
            "teleporting() got masked parameters: put it around optax.masked or "
            "optax.multi_transform, not inside"
        )
        raise ValueError(msg)
