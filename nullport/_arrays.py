"""Small array helpers that the standard lacks, and matrices that stay in factors.

Arrays may be of any namespace (:func:`array_api_compat.array_namespace`) and carry leading stack
axes: (..., rows, columns). A *vector* is one array per parameter of a network, None where it is 0;
an entry may be a :class:`LowRank`, which stands for ``left^T right`` without forming it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from array_api_compat import array_namespace, device, is_lazy_array, is_numpy_array

T = TypeVar("T")
Array: TypeAlias = Any
"""An array of any namespace that follows the Python array API standard."""

_NAMESPACES: dict[type, Any] = {}


def namespace(x: Array) -> Any:
    """Return the array API namespace of ``x``; looked up once per type, since it is asked often."""
    kind = type(x)
    if kind not in _NAMESPACES:
        _NAMESPACES[kind] = array_namespace(x)
    return _NAMESPACES[kind]


def traced(x: Array) -> bool:
    """Return whether the value of ``x`` cannot be asked for, as inside ``jax.jit``."""
    return bool(is_lazy_array(x))


def known(condition: Array) -> bool:
    """Return whether a 0-d bool is true and may be asked for; a traced one may not.

    Work is skipped where this holds. Where nothing can be asked, it is done and masked.
    """
    return not traced(condition) and bool(condition)


def plain(x: Array | None) -> Any:
    """Return a 0-d array as a Python number; None, and what is traced, as it is."""
    if x is None or traced(x):
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
    """Return ``x`` in float64, or in float32 where its device or namespace has nothing wider."""
    xp = namespace(x)
    if x.dtype == xp.float64:
        return x
    floats = xp.__array_namespace_info__().dtypes(device=place(x), kind="real floating")
    return xp.astype(x, xp.float64 if "float64" in floats else xp.float32, copy=False)


def eps(x: Array) -> float:
    """Return the relative spacing of numbers in the dtype of ``x``."""
    return float(namespace(x).finfo(x.dtype).eps)


def tiny(x: Array) -> float:
    """Return the smallest normal number in the dtype of ``x``."""
    return float(namespace(x).finfo(x.dtype).smallest_normal)


def positive(x: Array) -> Array:
    """Return ``x`` where it is positive, else 1: a divisor."""
    xp = namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


@dataclass(frozen=True)
class LowRank:
    """The matrix ``left^T right``, shape (..., a, b), in factors.

    Attributes:
        left: Shape (..., n, a).
        right: Shape (..., n, b).
    """

    left: Array
    right: Array

    @property
    def mT(self) -> LowRank:  # noqa: N802
        """The transpose."""
        return LowRank(self.right, self.left)

    def dense(self) -> Array:
        """Return the product, shape (..., a, b)."""
        return namespace(self.left).matrix_transpose(self.left) @ self.right

    def outputs(self, rows: Array) -> Array:
        """Return ``rows (left^T right)^T``, shape (..., m, a), for ``rows`` (..., m, b)."""
        size = largest(self.right)  # of inputs, as rows are: together they may overflow
        return (rows @ namespace(rows).matrix_transpose(self.right / size)) @ (size * self.left)

    def norm(self) -> Array:
        """Return the Frobenius norm, 0-d; never less than what rounding can resolve."""
        return self.norms()[0]

    def norms(self) -> tuple[Array, Array]:
        """Return the Frobenius norm, and the product of those of the factors, 0-d each."""
        xp = namespace(self.right)
        sizes = [largest(self.left), largest(self.right)]
        grams = [
            f @ xp.matrix_transpose(f)
            for f in (a / s for a, s in zip((self.left, self.right), sizes, strict=True))
        ]
        terms = grams[0] * grams[1]
        squared = xp.maximum(xp.sum(terms), eps(terms) * xp.sum(xp.abs(terms)))
        traces = [xp.sum(xp.linalg.trace(gram)) for gram in grams]
        found = xp.sqrt(xp.stack([squared, traces[0] * traces[1]])) * sizes[0] * sizes[1]
        return found[0], found[1]


Matrix: TypeAlias = "Array | LowRank"
Vector: TypeAlias = "Sequence[Array | LowRank | None]"
Dense: TypeAlias = "Sequence[Array | None]"
"""A vector without low-rank entries."""


def dense(x: Matrix | None) -> Array:
    """Return a matrix as an array; None, which stands for 0 in a vector, as it is."""
    return x.dense() if isinstance(x, LowRank) else x


def outputs(x: Matrix, rows: Array) -> Array:
    """Return ``rows x^T``, shape (..., m, a), for a matrix ``x`` (..., a, b)."""
    if isinstance(x, LowRank):
        return x.outputs(rows)
    return rows @ namespace(rows).matrix_transpose(x)


@cache
def _limits(xp: Any, dtype: Any) -> tuple[float, float]:
    """Return between which norms no square of a number of this dtype over- or underflows."""
    info = xp.finfo(dtype)
    return (float(info.smallest_normal) / float(info.eps)) ** 0.5, float(info.max)


def norm(x: Matrix) -> Array:
    """Return the Frobenius norm of ``x`` (any shape), 0-d, where squares over- or underflow too."""
    if isinstance(x, LowRank):
        return x.norm()
    xp = namespace(x)
    if not traced(x):
        # NumPy's own is a product with itself; that of the standard makes an array of squares.
        plainly = np.linalg.norm(x) if is_numpy_array(x) else whole(xp.linalg.vector_norm(x))
        low, high = _limits(xp, x.dtype)
        if low < float(plainly) < high:
            return plainly
    size = largest(x)
    return whole(xp.linalg.vector_norm(x / size)) * size


def largest(x: Array) -> Array:
    """Return the largest magnitude in ``x``, 0-d; 1 where it is 0 or not finite."""
    xp = namespace(x)
    if 0 in x.shape:
        return xp.ones((), dtype=x.dtype, device=place(x))
    size = whole(xp.max(xp.abs(x)))
    return xp.where((size > 0) & xp.isfinite(size), size, xp.ones_like(size))


def joint_norm(arrays: Iterable[Matrix | None]) -> Array:
    """Return the norm of several arrays taken as one vector, 0-d, in float32 or better.

    Raises:
        ValueError: If there is no array.
    """
    parts = [norm(a if isinstance(a, LowRank) else widen(a)) for a in arrays if a is not None]
    if not parts:
        msg = "joint_norm needs at least one array"
        raise ValueError(msg)
    return joined(parts)


def joined(norms: Sequence[Array]) -> Array:
    """Return the norm of the vector whose parts have the given norms, all 0-d."""
    return norms[0] if len(norms) == 1 else norm(namespace(norms[0]).stack(list(norms)))


def inner(a: Vector, b: Vector) -> Array:
    """Return the inner product of two vectors over all parameters, 0-d."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    products = (widen(dense(x)) * widen(dense(y)) for x, y in pairs)
    terms = [whole(namespace(product).sum(product)) for product in products]
    return sum(terms[1:], start=terms[0])


def scaled(factor: float | Array, x: Matrix) -> Matrix:
    """Return ``factor x`` in the dtype of ``x``, for a Python number or a 0-d array."""
    if isinstance(x, LowRank):
        return LowRank(x.left, scaled(factor, x.right))
    if isinstance(factor, int | float):
        return float(factor) * x
    return namespace(x).astype(factor, x.dtype, copy=False) * x


def added(own: Array, x: Array, factor: float = 1.0) -> Array:
    """Return ``own + factor x`` for a factor of 1 or -1, in the memory of ``own`` where it fits.

    That is to be an array which nobody else holds: fresh memory costs more than a sum.
    """
    if own.dtype != x.dtype:
        return own + x if factor == 1 else own - x
    if factor == 1:
        own += x
    else:
        own -= x
    return own


def combine(
    a: Vector, factor: float | Array, b: Vector, times: float | Array = 1.0
) -> list[Array | None]:
    """Return ``times (a + factor b)``, None where ``a`` is, and taking ``b`` as 0 where it is None.

    Entries are taken as they are where there is nothing to compute.
    """
    return [_combined(x, factor, y, times) for x, y in zip(a, b, strict=True)]


def _combined(a: Matrix | None, factor: float | Array, b: Matrix | None, times: Any) -> Array:
    if a is None or (b is None and _is(times, 1.0)):
        return a
    x = dense(a)
    if b is None:
        return scaled(times, x)
    y = dense(b)
    found = x - y if _is(factor, -1.0) else added(scaled(factor, y), x)
    if not _is(times, 1.0):
        found *= times if isinstance(times, float) else namespace(found).astype(times, found.dtype)
    return found


def _is(factor: float | Array, number: float) -> bool:
    return isinstance(factor, int | float) and factor == number


def place(x: Array) -> Any:
    """Return the device to make an array on that goes with ``x``; None, the default, for any.

    An array that is spread over several devices says how *it* is spread, which may not fit another.
    """
    where = device(x)
    return None if hasattr(where, "device_set") else where


def whole(x: Array) -> Array:
    """Return what was computed of an array that is spread over processes, whole on each of them.

    The result of an operation on such an array (``DTensor`` of torch) is still spread.
    """
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def with_column(x: Array, value: float | Array) -> Array:
    """Append a constant column to the stack of matrices ``x``: (..., n, d) -> (..., n, d + 1)."""
    xp = namespace(x)
    column = xp.ones((*x.shape[:-1], 1), dtype=x.dtype, device=place(x)) * value
    return xp.concat([x, column], axis=-1)


def probe_vector(like: Array, length: int) -> Array:
    """Return a fixed vector without structure, shape (length,), with ``like``'s dtype and device.

    It plays the random vector of Freivalds' check without touching any random number generator.
    """
    xp = namespace(like)
    index = xp.arange(1, length + 1, dtype=like.dtype, device=place(like))
    return xp.cos(index * 1.7) + 0.1


class Collective:
    """What the core asks of several replicas that hold different samples; identity for one.

    Every replica holds the same weights, calls the same methods in the same order, and gets the
    same answers. The joint loss is the mean of the replicas' losses.

    Attributes:
        size: Number of replicas.
    """

    size: int = 1

    def sum(self, x: Any) -> Any:
        """Return the sum over replicas of an array, or of a Python number."""
        return x

    def rows(self, x: Array) -> Array:
        """Return the rows of all replicas, (..., sum of n, d), for ``x`` (..., n, d)."""
        return x

    def mean(self, x: Matrix | None) -> Any:
        """Return the mean over replicas; that of a matrix in factors has the rows of all."""
        if self.size == 1 or x is None:
            return x
        if isinstance(x, LowRank):
            return LowRank(self.rows(x.left) / self.size, self.rows(x.right))
        return self.sum(x) / self.size

    def agree(self, flag: Array) -> Array:
        """Return whether a 0-d bool is true on any replica."""
        return flag

    def norm(self, x: Array) -> Array:
        """Return the norm of the vector whose parts have the norms ``x``, 0-d each."""
        if self.size == 1:
            return x
        size = positive(self.sum(x))  # scales, so that no square over- or underflows
        return size * self.sum((x / size) ** 2) ** 0.5

    def gather(self, value: T) -> list[T]:
        """Return a plain Python value of every replica; once if they run one program."""
        return [value]

    def attempt(self, work: Callable[[], T]) -> T:
        """Return ``work()``. Where it raises on one replica it raises on all: none has to wait."""
        return work()

    def gradients(self, vector: Vector, weights: Sequence[Array]) -> list[Matrix | None]:
        """Return the mean of a vector over replicas.

        An entry that is None on some replicas only, where the loss does not depend on the weight,
        is 0 there.
        """
        if self.size == 1:
            return list(vector)
        kinds = self.gather([None if a is None else isinstance(a, LowRank) for a in vector])
        found: list[Matrix | None] = []
        for index, a in enumerate(vector):
            kind = {own[index] for own in kinds}
            if a is None and kind != {None}:
                a = namespace(weights[index]).zeros_like(weights[index])
            found.append(self.mean(a if a is None or kind == {True} else dense(a)))
        return found

    def apart(self, weights: Sequence[Array]) -> Array:
        """Return whether the weights of any two replicas differ, 0-d bool.

        Sums alone would miss steps that keep them, as those of a softmax over classes do. Where
        the bits of an array can be read, to compare their sum is sharper.
        """
        xp = namespace(weights[0])
        kept = [widen(w) for w in weights if xp.isdtype(w.dtype, "real floating")]
        sums = [double(found) for w in kept for found in (whole(xp.sum(w)), norm(w))]
        every = self.rows(xp.stack(sums)[None, :])
        return xp.any(every != every[:1, :])
