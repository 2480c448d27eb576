"""Checks of what a user's functions return."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import device, is_array_api_obj

from nullport.network import Array, Parameter, namespace
from nullport_arrays._libraries import arraylike, check_array, check_beside

BITS = (16, 32, 64)
"""Widths of the floats that weights may hold: float16 and bfloat16, float32, float64."""


def as_loss(value: Any, like: Array, what: str = "loss") -> Array:
    """Return a loss as a 0-d array of floats, beside the weights.

    Args:
        value: A Python number, or a 0-d array of floats.
        like: One of the weights.
        what: Name of the function that returned it, for the message.

    Raises:
        TypeError: If it is an array of another library.
        ValueError: If it is anything else.
    """
    xp = namespace(like)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return xp.asarray(float(value), dtype=like.dtype, device=device(like))
    if arraylike(value) and not isinstance(value, np.generic):
        check_beside(f"what {what} returned", value, like)
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
        TypeError: If it is no array that nullport computes with, or holds floats of another
            format.
    """
    check_array(f"weight {name}", array)
    try:
        floats, origin = is_float(array), ""
    except TypeError:  # such as bfloat16 of ml_dtypes in an array of NumPy
        floats, origin = True, " of another library"
    if not floats:
        return Parameter(name, movable=False, reason=f"it holds {array.dtype}, not floats")
    if origin or namespace(array).finfo(array.dtype).bits not in BITS:
        msg = f"weight {name} holds {array.dtype}{origin}; allowed: "
        msg += "float64, float32, float16, bfloat16"
        raise TypeError(msg)
    return Parameter(name)
