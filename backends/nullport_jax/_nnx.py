"""Teleports of flax.nnx modules, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nullport import TeleportReport
from nullport_jax._api import teleport


def teleport_nnx(
    model: Any, loss_fn: Callable[..., Any], *batch: Any, **given: Any
) -> TeleportReport:
    """Teleport a ``flax.nnx`` module in place.

    Every pass works on a copy of the module, so that statistics, counters and random streams
    (BatchNorm, Dropout) stay as they are and every pass sees the same ones.

    Args:
        model: The module; its variables of type ``nnx.Param`` may move.
        loss_fn: ``loss_fn(model, *batch)`` returns the loss.
        *batch: The other arguments of ``loss_fn``.
        **given: As for :func:`nullport_jax.teleport`: ``guard``, ``others``, ``config``, ... For
            ``tx`` and ``opt_state``, those of an ``nnx.Optimizer`` over ``nnx.Param``.

    Returns:
        The report.

    Raises:
        TypeError: As :func:`nullport_jax.teleport`.
        ValueError: As :func:`nullport_jax.teleport`.
    """
    from flax import nnx

    parts: Any = nnx.split(model, nnx.Param, ...)
    graphdef, params, rest = parts
    # Newer versions of flax share the variables unless told otherwise.
    copy = {"copy": True} if "copy" in inspect.signature(nnx.merge).parameters else {}

    def pure(params: Any, rest: Any, *batch: Any) -> Any:
        return loss_fn(nnx.merge(graphdef, params, rest, **copy), *batch)

    for name in ("guard", "others"):
        if given.get(name) is not None:
            given[name] = (rest, *given[name])
    moved, report = teleport(pure, params, rest, *batch, **given)
    nnx.update(model, moved)
    return report
