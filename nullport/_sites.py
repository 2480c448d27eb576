"""Sites, and where the elements of their weights live.

A *site* is one use of a weight by a linear map on rows,

    Y = X W^T + b    X (samples, in), W (out, in), Y (samples, out); delta = dL/dY like Y.

A convolution is the same map on patches. Stacks of matrices (grouped convolutions, experts) carry
leading axes: ``X`` (..., samples, in), ``W`` (..., out, in).

A layer rarely uses a parameter as the matrix it is stored as: convolutions fold their kernel axes,
attention packs three projections in one, a product ``x @ W`` uses the transpose. A *layout* says so
with (size, stride) pairs over the parameter's flat storage. Two uses share a null space exactly
when their layouts are equal, and are independent when they touch different elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

Array = Any
Axes = tuple[tuple[int, int], ...]
Ints = tuple[int, ...]


def _merge(axes: Axes) -> Axes:
    """Drop axes of size 1 and fuse neighbours that are contiguous, so that equal means equal."""
    merged: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)


@dataclass(frozen=True)
class Layout:
    """Elements of a parameter, seen as a stack of matrices (..., out, in).

    Attributes:
        offset: Flat position of the first element.
        stack: (size, stride) of each leading axis.
        out: (size, stride) of each output axis, outermost first.
        inp: (size, stride) of each input axis, outermost first; empty for a bias.
    """

    offset: int
    stack: Axes
    out: Axes
    inp: Axes

    @property
    def canonical(self) -> tuple[int, Axes, Axes, Axes]:
        """A form that is equal for two layouts of the same matrix."""
        return self.offset, _merge(self.stack), _merge(self.out), _merge(self.inp)

    @property
    def transposed(self) -> bool:
        """Whether the matrix is stored (in, out), its input axes having the largest stride."""
        out, inp = (max((stride for _, stride in axes), default=0) for axes in (self.out, self.inp))
        return inp > out

    @property
    def mT(self) -> Layout:  # noqa: N802
        """The layout of the transposed matrices."""
        return Layout(self.offset, self.stack, self.inp, self.out)

    @property
    def axes(self) -> Axes:
        """All axes, outermost first."""
        return self.stack + self.out + self.inp

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(size for size, _ in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which it is read, (..., out, in), or (..., out) for a bias."""
        parts = [self.out, self.inp] if self.inp else [self.out]
        stack = (size for size, _ in self.stack)
        return (*stack, *(prod(size for size, _ in part) for part in parts))

    def elements(self) -> npt.NDArray[np.int64]:
        """Return the flat positions of all elements, shape (size,)."""
        positions = np.asarray([self.offset], dtype=np.int64)
        for size, stride in self.axes:
            positions = (positions[:, None] + np.arange(size) * stride).reshape(-1)
        return positions

    def span(self) -> tuple[int, int]:
        """Return the first and last flat position."""
        return self.offset, self.offset + sum((size - 1) * stride for size, stride in self.axes)

    def overlaps(self, other: Layout) -> bool:
        """Tell whether the two share an element."""
        (a, b), (c, d) = self.span(), other.span()
        if b < c or d < a:
            return False
        return bool(np.isin(self.elements(), other.elements()).any())

    def read(self, array: Array) -> Array:
        """Return the elements that are named, of ``array`` stored row by row: :attr:`shape`."""
        xp, box = array_namespace(array), self._box(prod(array.shape))
        if box is None:
            flat = xp.reshape(array, (-1,))
            where = xp.asarray(self.elements(), device=device(array))
            return xp.reshape(xp.take(flat, where, axis=0), self.shape)
        shape, slices, order = box
        part = xp.reshape(array, shape)[slices]
        return xp.reshape(xp.permute_dims(part, order), self.shape)

    def written(self, matrix: Array, like: Array) -> Array:
        """Return ``matrix`` (:attr:`shape`) in its places of an array shaped ``like``, else 0."""
        xp, size = array_namespace(matrix), prod(like.shape)
        box = self._box(size)
        if box is None:  # a gather the other way round: positions are known beforehand
            index = np.full(size, self.size)
            index[self.elements()] = np.arange(self.size)
            where = xp.asarray(index, device=device(matrix))
            flat = xp.reshape(matrix, (-1,))
            flat = xp.concat([flat, xp.zeros_like(flat[:1])])
            return xp.reshape(xp.take(flat, where, axis=0), like.shape)
        shape, slices, order = box
        inside = [s.stop - s.start for s in slices]
        ordered = xp.reshape(matrix, tuple(inside[i] for i in order))
        found = xp.permute_dims(ordered, tuple(sorted(range(len(order)), key=order.__getitem__)))
        for axis, (total, s) in enumerate(zip(shape, slices, strict=True)):
            found = _padded(xp, found, axis, s.start, total - s.stop)
        return xp.reshape(found, like.shape)

    def _box(self, size: int) -> tuple[Ints, tuple[slice, ...], Ints] | None:
        """Return the layout as a slice of a reshaped parameter; None if strides do not nest.

        That is: the shape, the slice, and the order of its axes in the stack of matrices.
        """
        axes = [axis for axis in self.axes if axis[0] > 1]
        ranked = sorted(range(len(axes)), key=lambda i: -axes[i][1])
        shape, slices, outer = [], [], size
        for count, stride in (axes[i] for i in ranked):
            if not stride or outer % stride:
                return None
            start = self.offset % outer // stride
            if start + count > outer // stride:
                return None
            shape.append(outer // stride)
            slices.append(slice(start, start + count))
            outer = stride
        last = self.offset % outer
        order = (*(ranked.index(i) for i in range(len(axes))), len(axes))
        return (*shape, outer), (*slices, slice(last, last + 1)), order


def _padded(xp: Any, x: Array, axis: int, before: int, after: int) -> Array:
    """Return ``x`` with zeros before and after it along an axis."""
    sizes = [(*x.shape[:axis], n, *x.shape[axis + 1 :]) for n in (before, after)]
    a, b = (xp.zeros(size, dtype=x.dtype, device=device(x)) for size in sizes)
    return xp.concat([a, x, b], axis=axis) if before or after else x


def matrix(stack: tuple[int, ...], out: int, inp: int | None, *, offset: int = 0) -> Layout:
    """Return the layout of a parameter stored row by row as (*stack, out, inp).

    >>> matrix((), 3, 4).canonical
    (0, (), ((3, 4),), ((4, 1),))
    """
    sizes = (*stack, out) if inp is None else (*stack, out, inp)
    strides = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
    axes = tuple(zip(sizes, strides, strict=True))
    cut = len(stack)
    return Layout(offset, axes[:cut], axes[cut : cut + 1], axes[cut + 1 :])


class Site(Protocol):
    """One use of a weight by a linear map.

    Attributes:
        kind: Name of the operation, for the report.
        samples: Number of rows of ``X``.
        inputs: The layer's input as the framework holds it; tangents have the same shape.
        cotangent: ``delta`` as the framework holds it, or None if the loss does not depend
            differentiably on this use (it still constrains the null space).
        output_norm: Frobenius norm of ``X W^T``, 0-d.
    """

    @property
    def kind(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def inputs(self) -> Array: ...
    @property
    def cotangent(self) -> Array | None: ...
    @property
    def output_norm(self) -> Array: ...

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X`` in chunks of rows, each (..., n, in); about one row in ``every``."""

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias`` for ``weight`` (..., out, in) and ``bias`` (..., out).

        Its shape is the framework's own: only its norm is asked for.
        """

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``delta^T X`` (..., out, in) evaluated at ``inputs`` instead of the site's own.

        With ``probe`` (out,) the cotangent is first contracted to one output: (..., 1, in).
        """

    def bias_gradient(self) -> Array:
        """Return the sum of ``delta`` over all rows, shape (..., out)."""


@dataclass(frozen=True)
class DenseSite:
    """A site of a plain matrix product.

    Attributes:
        kind: Name of the operation.
        inputs: ``X``, shape (..., samples, in).
        cotangent: ``delta``, shape (..., samples, out), or None.
        output_norm: Frobenius norm of ``X W^T``.
    """

    kind: str
    inputs: Array
    cotangent: Array | None
    output_norm: Array

    @property
    def samples(self) -> int:
        """Number of rows of ``X``."""
        return int(self.inputs.shape[-2])

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X``, or one row in ``every``, in one piece."""
        yield self.inputs if every == 1 else self.inputs[..., ::every, :]

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias``, shape (..., samples, out)."""
        xp = array_namespace(weight)
        inputs = xp.astype(self.inputs, weight.dtype, copy=False)
        output = inputs @ xp.matrix_transpose(weight)
        return output if bias is None else output + bias[..., None, :]

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``delta^T inputs``, shape (..., out, in), or (..., 1, in) with ``probe``.

        Raises:
            ValueError: If the site has no cotangent.
        """
        if self.cotangent is None:
            msg = "this site has no cotangent: the loss does not depend on it"
            raise ValueError(msg)
        xp = array_namespace(inputs)
        delta = xp.astype(self.cotangent, inputs.dtype, copy=False)
        if probe is not None:
            delta = (delta @ probe)[..., None]
        return xp.matrix_transpose(delta) @ inputs

    def bias_gradient(self) -> Array:
        """Return the sum of ``delta`` over the rows, shape (..., out)."""
        return array_namespace(self.cotangent).sum(self.cotangent, axis=-2)
