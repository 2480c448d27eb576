"""The user's optax optimizer, asked for its next step without taking it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def updates(
    tx: Any,
    state: Any,
    gradients: Any,
    params: Any,
    value: Callable[[], Any],
    value_fn: Callable[[Any], Any],
) -> Any:
    """Return ``tx.update(gradients, state, params)``; the new state is dropped.

    What optax's line searches and the like want beside (the loss, the gradient, the loss as a
    function) is passed where it is accepted.

    Args:
        tx: A gradient transformation, of optax or alike.
        state: Its state.
        gradients: Pytree like ``params``.
        params: Pytree of parameters; None where a leaf is no array of floats.
        value: Returns the loss at ``params``; called only if ``tx`` asks for it.
        value_fn: The loss as a function of such a pytree.
    """
    extra: dict[str, Callable[[], Any]] = {
        "value": value,
        "grad": lambda: gradients,
        "value_fn": lambda: value_fn,
    }
    accepted = inspect.signature(tx.update).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    wanted = {name: make() for name, make in extra.items() if anything or name in accepted}
    step, _ = tx.update(gradients, state, params, **wanted)
    return step
