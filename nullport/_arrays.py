"""Small array helpers that the standard lacks, for stacks of matrices (..., rows, columns).

Everything goes through :func:`array_api_compat.array_namespace`, never through a framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from array_api_compat import array_namespace, device, is_lazy_array, is_numpy_array

Array: TypeAlias = Any
"""An array of any namespace that follows the Python array API standard."""


_NAMESPACES: dict[type, Any] = {}


def namespace(x: Array) -> Any:
    """Return the array API namespace of ``x``; looked up once per type, since it is asked often."""
    kind = type(x)
    if kind not in _NAMESPACES:
        _NAMESPACES[kind] = array_namespace(x)
    return _NAMESPACES[kind]


def known(condition: Array) -> bool:
    """Return whether a 0-d bool is true and may be asked for; a traced one may not.

    Work is skipped where this holds. Where nothing can be asked, it is done and masked.
    """
    return not is_lazy_array(condition) and bool(condition)


def plain(x: Array) -> Any:
    """Return a 0-d array as a Python number, or as it is where it may be traced."""
    if is_lazy_array(x):
        return x
    if isinstance(x, float):  # of Python or NumPy
        return float(x)
    return int(x) if namespace(x).isdtype(x.dtype, "integral") else float(x)


def widen(x: Array) -> Array:
    """Return ``x`` in float32 or better, the dtype in which factorisations are made.

    Half precision has no QR or eigendecomposition anywhere, and a half-precision projection
    does not preserve the layer's output.
    """
    xp = namespace(x)
    if x.dtype in (xp.float32, xp.float64):
        return x
    return xp.astype(x, xp.result_type(x.dtype, xp.float32))


def double(x: Array) -> Array:
    """Return ``x`` in float64, or in float32 where the namespace has nothing wider (JAX)."""
    xp = namespace(x)
    widest = "float64" if "float64" in _floats(xp) else "float32"
    return xp.astype(x, getattr(xp, widest), copy=False)


def _floats(xp: Any) -> Any:
    return xp.__array_namespace_info__().dtypes(kind="real floating")


def norm(x: Array) -> Array:
    """Return the Frobenius norm of ``x`` (any shape) as a 0-d array."""
    linalg = namespace(x).linalg
    if is_numpy_array(x):  # a product with itself; the other one makes an array of squares
        return linalg.norm(x)
    return linalg.vector_norm(x)


def joint_norm(arrays: list[Array]) -> Array:
    """Return the norm of several arrays taken as one vector, as a 0-d array.

    Raises:
        ValueError: If ``arrays`` is empty.
    """
    if not arrays:
        msg = "joint_norm needs at least one array"
        raise ValueError(msg)
    return joined([norm(widen(a)) for a in arrays])


def joined(norms: list[Array]) -> Array:
    """Return the norm of the vector whose parts have the given norms, all 0-d."""
    if len(norms) == 1:
        return norms[0]
    xp = namespace(norms[0])
    return xp.linalg.vector_norm(xp.stack(norms))


class Norms:
    """The norms of arrays, each computed when it is first asked for."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Take the arrays."""
        self._arrays = arrays
        self._found: dict[int, Array] = {}

    def __getitem__(self, index: int) -> Array:
        """Return the norm of one of them, 0-d."""
        if index not in self._found:
            self._found[index] = norm(widen(self._arrays[index]))
        return self._found[index]


def product_norm(left: Array, right: Array) -> Array:
    """Return ``||left^T right||`` for factors (..., n, a) and (..., n, b), as a 0-d array.

    The product is not formed. Never less than what rounding can resolve.
    """
    xp = namespace(right)
    terms = (left @ xp.matrix_transpose(left)) * (right @ xp.matrix_transpose(right))
    floor = float(xp.finfo(terms.dtype).eps) * xp.sum(xp.abs(terms))
    return xp.sqrt(xp.maximum(xp.sum(terms), floor))


def place(x: Array) -> Any:
    """Return the device to make an array on that goes with ``x``; None, the default, for any.

    An array that is spread over several devices says how *it* is spread, which may not fit another.
    """
    where = device(x)
    return None if hasattr(where, "device_set") else where


def with_column(x: Array, value: float) -> Array:
    """Append a constant column to the stack of matrices ``x``: (..., n, d) -> (..., n, d + 1)."""
    xp = namespace(x)
    column = xp.full((*x.shape[:-1], 1), value, dtype=x.dtype, device=place(x))
    return xp.concat([x, column], axis=-1)


def probe_vector(like: Array, length: int) -> Array:
    """Return a fixed vector without structure, shape (length,), with ``like``'s dtype and device.

    It plays the random vector of Freivalds' check without touching any random number generator.
    """
    xp = namespace(like)
    index = xp.arange(1, length + 1, dtype=like.dtype, device=place(like))
    return xp.cos(index * 1.7) + 0.1
