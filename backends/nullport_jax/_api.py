"""The functions: one teleport, and a look at what one would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.typing import ArrayLike

import nullport
from nullport import LayerReport, TeleportConfig, TeleportReport
from nullport_jax._graph import JaxGraph

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

    Returns:
        The parameters, moved or as they were, and the report; its numbers are 0-d arrays.

    Raises:
        TypeError: If ``config`` is no ``TeleportConfig``.
        ValueError: If the loss is no scalar float, or no parameter is used by a linear map.
    """
    graph = JaxGraph(
        loss_fn,
        params,
        batch,
        guard=guard,
        others=others,
        tx=tx,
        opt_state=opt_state,
        has_aux=has_aux,
    )
    report = nullport.teleport(graph, config, radius=radius)
    return graph.params, report


def inspect(
    loss_fn: LossFn,
    params: Params,
    *batch: Any,
    config: TeleportConfig | None = None,
    has_aux: bool = False,
) -> list[LayerReport]:
    """List every weight with what a teleport would find there; nothing is moved.

    Args:
        loss_fn: As for :func:`teleport`.
        params: As for :func:`teleport`.
        *batch: As for :func:`teleport`.
        config: Settings; the defaults if None.
        has_aux: As for :func:`teleport`.

    Returns:
        One entry per weight: its map, inputs, samples, null space, and why it would not move.

    Raises:
        TypeError: As :func:`teleport`.
        ValueError: As :func:`teleport`.
    """
    return nullport.inspect(JaxGraph(loss_fn, params, batch, has_aux=has_aux), config)
