"""Teleports as an optax transformation, around the one that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nullport import TeleportConfig
from nullport._cost import GRADIENT
from nullport._policy import HORIZON, RADIUS, Rule, State
from nullport_jax._api import run
from nullport_jax._graph import JaxGraph


class TeleportingState(NamedTuple):
    """State of :func:`teleporting`; a pytree.

    Attributes:
        inner: State of the transformation that trains.
        policy: When the next teleport is due, how far it may go, what was spent.
        recent: The two batches before this one, if an example was given, and how many are kept.
        accepted: Number of teleports that were kept.
        refused: Number of teleports that were undone.
        cause: Why the last one was refused, a code of ``nullport._report.Cause``; 0 if not.
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
    every: int | str = "auto",
    horizon: int = HORIZON,
    config: TeleportConfig | None = None,
    example: tuple[Any, ...] | None = None,
    has_aux: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Teleport every so often, and train with ``tx`` from the better place.

    Its ``update(updates, state, params, batch=...)`` takes the batch that the gradients are of. It
    has to be the outermost transformation that sees single parameters: inside ``optax.masked`` or
    ``optax.multi_transform`` it raises.

    Args:
        tx: The transformation that trains.
        loss_fn: ``loss_fn(params, *batch)`` returns the loss.
        every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
            refused, and never more than a small share of the compute.
        horizon: Training steps the run is expected to take.
        config: Settings of each teleport; the defaults if None.
        example: A batch, of which only shapes and dtypes are used. With it the two batches before
            serve as other samples: one to look ahead with, one to have the last word. Without it,
            ``update`` takes them as ``others=`` and ``guard=``; with neither, moves are judged by
            the loss and the optimizer's own step alone.
        has_aux: Whether ``loss_fn`` returns a pair that begins with the loss.

    Returns:
        The transformation. At a teleport its updates are the move and the step of ``tx`` at the
        moved parameters, whose gradient the teleport has just computed.

    Raises:
        ValueError: If ``every`` or ``horizon`` is not allowed.
    """
    rule, settings = Rule.parse(every, horizon), config or TeleportConfig()
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> TeleportingState:
        _check(params)
        count = jnp.zeros((), jnp.int32)
        blank = None
        if example is not None:
            shapes = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), jnp.result_type(a)), example)
            blank = (shapes, shapes, count)
        policy = rule.start(jnp.zeros((), jnp.float32))
        return TeleportingState(inner.init(params), policy, blank, count, count, count)

    def update(
        updates: Any,
        state: TeleportingState,
        params: Any = None,
        *,
        batch: tuple[Any, ...] | None = None,
        guard: tuple[Any, ...] | None = None,
        others: tuple[Any, ...] | None = None,
        **extra: Any,
    ) -> tuple[Any, TeleportingState]:
        _check(params)
        if params is None or batch is None:
            missing = "params" if params is None else "batch"
            msg = f"update() needs {missing}: tx.update(grads, state, params, batch=(x, y))"
            raise ValueError(msg)
        due = rule.due(state.policy)
        if state.recent is not None:
            older, newer, count = state.recent
            due = due & ((count >= 2) | (guard is not None))
            guard = older if guard is None else guard
            others = newer if others is None else others

        def jump(_: Any) -> tuple[Any, TeleportingState]:
            graph = JaxGraph(
                loss_fn,
                params,
                batch,
                guard=guard,
                others=others,
                tx=tx,
                opt_state=state.inner,
                has_aux=has_aux,
            )
            report = run(graph, settings, RADIUS)
            steps, after = inner.update(graph.settled, state.inner, graph.params, **extra)
            moved = jax.tree.map(lambda new, old, u: (new - old) + u, graph.params, params, steps)
            accepted = jnp.asarray(report.accepted)
            return moved, state._replace(
                inner=after,
                policy=rule.update(state.policy, accepted, report.cost - GRADIENT),
                accepted=state.accepted + accepted,
                refused=state.refused + ~accepted,
                cause=jnp.asarray(report.cause, jnp.int32),
            )

        def walk(_: Any) -> tuple[Any, TeleportingState]:
            steps, after = inner.update(updates, state.inner, params, **extra)
            return steps, state._replace(inner=after)

        steps, after = jax.lax.cond(due, jump, walk, None)
        recent = state.recent
        if recent is not None:
            recent = (recent[1], batch, jnp.minimum(recent[2] + 1, 2))
        return steps, after._replace(policy=rule.tick(after.policy), recent=recent)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(params: Any) -> None:
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        msg = (
            "teleporting() got masked parameters: put it around optax.masked or "
            "optax.multi_transform, not inside"
        )
        raise ValueError(msg)
