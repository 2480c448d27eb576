"""Checks of what a user's functions return."""

from __future__ import annotations

from typing import Any

from array_api_compat import device, is_array_api_obj

from nullport.network import Array, Parameter, namespace

WIDEST = 64
"""Bits of the widest floats that have a QR and an eigendecomposition."""


def as_loss(value: Any, like: Array, what: str = "loss") -> Array:
    """Return a loss as a 0-d array of floats, beside the weights.

    Args:
        value: A Python number, or a 0-d array of floats.
        like: One of the weights.
        what: Name of the function that returned it, for the message.

    Raises:
        ValueError: If it is anything else.
    """
    xp = namespace(like)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return xp.asarray(float(value), dtype=like.dtype, device=device(like))
    if is_array_api_obj(value) and not value.shape and is_float(value):
        return value
    shown = f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)
    msg = f"{what} returned {shown}; allowed: a scalar of floats"
    raise ValueError(msg)


def is_float(array: Array) -> bool:
    """Tell whether an array holds real floats."""
    return bool(namespace(array).isdtype(array.dtype, "real floating"))


def describe(name: str, array: Any) -> Parameter:
    """Return what the core needs to know of a weight.

    Raises:
        TypeError: If it is no array, or holds floats that have no linear algebra.
    """
    if not is_array_api_obj(array):
        msg = f"weight {name} is a {type(array).__name__}; allowed: an array"
        raise TypeError(msg)
    if is_float(array):
        if namespace(array).finfo(array.dtype).bits > WIDEST:
            msg = f"weight {name} holds {array.dtype}; allowed: float64, float32 or narrower floats"
            raise TypeError(msg)
        return Parameter(name)
    return Parameter(name, movable=False, reason=f"it holds {array.dtype}, not floats")
