"""Which arrays nullport computes with, and the one error for all others.

Needed is a namespace of the Python array API standard with linear algebra, whose values can be
asked for. What lacks it is refused where it enters, by name: an error from inside a teleport would
say nothing about the array that caused it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_dask_array

from nullport.network import Array, namespace

NATIVE = ("numpy", "cupy", "torch", "jax", "array-api-strict")
"""Libraries that are tested to give the same numbers; ``docs/arrays.md`` has the table."""

NEEDED = (
    "__array_namespace_info__", "abs", "all", "any", "arange", "argmax", "asarray", "astype",
    "clip", "concat", "cos", "cumulative_sum", "exp", "finfo", "flip", "floor", "full_like",
    "isdtype", "isfinite", "log", "matrix_transpose", "max", "maximum", "min", "minimum", "ones",
    "ones_like", "permute_dims", "reshape", "result_type", "sqrt", "stack", "sum", "take", "where",
    "zeros", "zeros_like",
)  # fmt: skip
"""Functions of a namespace that the core calls."""

NEEDED_LINALG = ("diagonal", "eigh", "inv", "qr", "svd", "trace", "vector_norm")
"""Those of its extension for linear algebra."""


def arraylike(value: Any) -> bool:
    """Tell whether a value is an array of some library, known or not."""
    return is_array_api_obj(value) or (
        hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type)
    )


def check_array(what: str, value: Any) -> None:
    """Check that nullport can compute with an array.

    Args:
        what: What it is, for the message.
        value: The array.

    Raises:
        TypeError: If it is no array, or one of a library that nullport cannot compute with.
    """
    kind = type(value)
    if kind not in _FAULTS:
        _FAULTS[kind] = _fault(value)
    fault = _FAULTS[kind]
    if fault is None:
        return
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    msg = (
        f"{what} is a {name}{fault}; allowed: an array of {', '.join(NATIVE)}, or of a library "
        f"with all of the Python array API standard and its linear algebra. Convert others first, "
        f"most by numpy.asarray(x) or numpy.from_dlpack(x): docs/arrays.md has a table"
    )
    raise TypeError(msg)


def check_beside(what: str, value: Any, weight: Array) -> None:
    """Check that an array can be used in one computation with a weight.

    Raises:
        TypeError: If it is no array, or one of another library than the weight.
    """
    if type(value) is type(weight):
        return
    check_array(what, value)
    ours, theirs = _library(weight), _library(value)
    if ours != theirs:
        msg = f"{what} is an array of {theirs}, others are of {ours}; allowed: arrays of one "
        msg += "library, see the table of conversions in docs/arrays.md"
        raise TypeError(msg)


_FAULTS: dict[type, str | None] = {}


def _fault(value: Any) -> str | None:
    """Return what keeps arrays of this class from being computed with, None if nothing does."""
    if isinstance(value, np.matrix | np.ma.MaskedArray):
        return ", whose operators are not those of arrays"
    if is_dask_array(value):
        return ", which computes itself anew whenever its value is asked for (use x.compute())"
    if not is_array_api_obj(value):
        return ""
    try:
        xp = namespace(value)
    except Exception as error:  # of another library: anything may come
        return f", whose namespace raises {type(error).__name__}: {error}"
    linalg = getattr(xp, "linalg", None)
    lacking = [name for name in NEEDED if not hasattr(xp, name)]
    lacking += [f"linalg.{name}" for name in NEEDED_LINALG if not hasattr(linalg, name)]
    return f", whose namespace lacks {', '.join(lacking[:3])}" if lacking else None


def _library(array: Array) -> str:
    """Return the name of the library of an array.

    >>> _library(np.zeros(3))
    'numpy'
    """
    name: str = getattr(namespace(array), "__name__", "an unnamed namespace")
    return name.removeprefix("array_api_compat.").partition(".")[0]
