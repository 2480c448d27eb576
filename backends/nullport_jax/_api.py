"""The functions: one teleport, and a look at what one would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.typing import ArrayLike

import nullport
from nullport import LayerReport, TeleportConfig, TeleportReport
from nullport_jax._collective import Name
from nullport_jax._explicit import unspread
from nullport_jax._graph import JaxGraph
from nullport_jax._meshes import automatic, explicit_axes

Params = Any
LossFn = Callable[..., Any]


def teleport(
    loss_fn: LossFn,
    params: Params,
    *batch: Any,
    guard: Sequence[Any] | None = None,
    others: Sequence[Any] | None = None,
    tx: Any = None,
    opt_state: Any = None,
    config: TeleportConfig | None = None,
    radius: ArrayLike | None = None,
    has_aux: bool = False,
    axis_name: Name | None = None,
) -> tuple[Params, TeleportReport]:
    """Move parameters so that the loss stays and its gradient, or another objective, improves.

    A pure function that may be jitted as a whole; it then compiles once for the shapes it gets.
    Outside of ``jit`` its passes are compiled, the rest runs operation by operation.

    Args:
        loss_fn: ``loss_fn(params, *batch)`` returns the loss, a scalar.
        params: Pytree of parameters, of any library. Arrays of floats may move.
        *batch: The other arguments of ``loss_fn``: the batch of the training step that follows.
            Random keys among them are the same in every pass.
        guard: The same for other samples, which have the last word: their loss must not rise, or
            with ``tx``, must be lower after its next step than without the move.
        others: The same for yet other samples, for the objective ``"look_ahead"``.
        tx: The optax transformation that trains, asked for its next step but never advanced.
        opt_state: Its state.
        config: Settings; the defaults if None.
        radius: Relative length of the move, where ``config`` leaves it open; may be traced.
        has_aux: Whether ``loss_fn`` returns a pair that begins with the loss.
        axis_name: Inside ``pmap`` or ``shard_map``, the axis, or a tuple of axes, along which
            replicas hold equal parameters and batches of their own. The teleport is then that of
            the joint batch, whose loss is the mean of the replicas' losses.

    Returns:
        The parameters, moved or as they were, and the report; its numbers are 0-d arrays.

    Raises:
        TypeError: If ``config`` is no ``TeleportConfig``.
        ValueError: If the loss is no scalar float, exchanges something along an axis that is not
            named, or no parameter is used by a linear map.
    """
    loss = unspread(loss_fn, (params, *batch)) if explicit_axes() else loss_fn

    def work(params: Any, batch: Any, guard: Any, others: Any, state: Any, radius: Any) -> Any:
        graph = JaxGraph(
            loss,
            params,
            batch,
            guard=guard,
            others=others,
            tx=tx,
            opt_state=state,
            has_aux=has_aux,
            axis_name=axis_name,
        )
        report = nullport.teleport(graph, config, radius=radius)
        return graph.params, graph.first(report)

    return automatic(work, (params, batch, guard, others, opt_state, radius), params)


def inspect(
    loss_fn: LossFn,
    params: Params,
    *batch: Any,
    config: TeleportConfig | None = None,
    has_aux: bool = False,
    axis_name: Name | None = None,
) -> list[LayerReport]:
    """List every weight with what a teleport would find there; nothing is moved.

    Args:
        loss_fn: As for :func:`teleport`.
        params: As for :func:`teleport`.
        *batch: As for :func:`teleport`.
        config: Settings; the defaults if None.
        has_aux: As for :func:`teleport`.
        axis_name: As for :func:`teleport`.

    Returns:
        One entry per weight: its map, inputs, samples, null space, and why it would not move.

    Raises:
        TypeError: As :func:`teleport`.
        ValueError: As :func:`teleport`.
    """
    loss = unspread(loss_fn, (params, *batch)) if explicit_axes() else loss_fn

    def work(params: Any, batch: Any) -> tuple[None, list[LayerReport]]:
        graph = JaxGraph(loss, params, batch, has_aux=has_aux, axis_name=axis_name)
        return None, graph.first(nullport.inspect(graph, config))

    return automatic(work, (params, batch), None)[1]
