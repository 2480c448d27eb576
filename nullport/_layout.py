"""Where the elements of a weight matrix live inside a parameter.

A layer rarely uses a parameter as the matrix it is stored as: convolutions fold their kernel axes,
attention packs three projections in one, a product ``x @ W`` uses the transpose. A *layout* says so
with (size, stride) pairs over the parameter's flat storage: one list for the stack axes, one for
the output axes, one for the input axes. Two uses share a null space exactly when their layouts are
equal, and are independent when they touch different elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Axes = tuple[tuple[int, int], ...]


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
    def axes(self) -> Axes:
        """All axes, outermost first."""
        return self.stack + self.out + self.inp

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod([size for size, _ in self.axes], dtype=np.int64))

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


def matrix(stack: tuple[int, ...], out: int, inp: int | None, *, offset: int = 0) -> Layout:
    """Return the layout of a parameter stored row by row as (*stack, out, inp).

    >>> matrix((), 3, 4).canonical
    (0, (), ((3, 4),), ((4, 1),))
    """
    sizes = (*stack, out) if inp is None else (*stack, out, inp)
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).tolist()
    axes = tuple(zip(sizes, strides, strict=True))
    cut = len(stack)
    return Layout(offset, axes[:cut], axes[cut : cut + 1], axes[cut + 1 :])
