"""Which elements of an array another array holds, when only its layout was changed.

A *view* gives every axis of the array as a tuple of (size, stride) pairs over the flat, row-major
storage of its source, outermost first: an axis that was merged from several keeps them apart, so
that a reshape can take it apart again. Axes of size 1 are empty; a broadcast axis has stride 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from nullport.network import Axes


@dataclass(frozen=True)
class View:
    """An array that holds elements of a parameter, or of the output of a site.

    Attributes:
        source: Index of the parameter or of the site.
        is_weight: Whether the source is a parameter.
        offset: Flat position of the first element.
        axes: One tuple of (size, stride) pairs per axis.
        outer: Axes that enclosing scans have taken, by the level of the scan.
        stopped: Whether no gradient flows back to the source.
    """

    source: int
    is_weight: bool
    offset: int
    axes: tuple[Axes, ...]
    outer: tuple[tuple[int, Axes], ...] = ()
    stopped: bool = False

    def transposed(self, order: Sequence[int]) -> View:
        """Return the view with its axes in another order."""
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """Return the view in another shape, or None if its axes cannot be cut like that."""
        axes = regroup(flat(self.axes), shape)
        return None if axes is None else replace(self, axes=axes)

    def broadcast(self, shape: Sequence[int], where: Sequence[int]) -> View:
        """Return the view with axis ``i`` at ``where[i]`` of ``shape``, repeated along the rest."""
        axes: list[Axes] = [stretched(n) for n in shape]
        for own, at in zip(self.axes, where, strict=True):
            if own:
                axes[at] = own
        return replace(self, axes=tuple(axes))

    def squeezed(self, dims: Sequence[int]) -> View:
        """Return the view without the axes ``dims``, all of size 1."""
        return replace(self, axes=tuple(a for i, a in enumerate(self.axes) if i not in dims))

    def sliced(
        self, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]
    ) -> View | None:
        """Return a slice, or None if it cuts through a merged axis."""
        offset, axes = self.offset, []
        for own, start, size, step in zip(self.axes, starts, sizes, steps, strict=True):
            cut = _cut(own, start, size, step)
            if cut is None:
                return None
            offset += cut[0]
            axes.append(cut[1])
        return replace(self, offset=offset, axes=tuple(axes))

    def taken(self, level: int) -> View:
        """Return what one iteration of the scan at ``level`` sees: the first axis is taken."""
        first, rest = self.axes[0], self.axes[1:]
        if all(stride == 0 for _, stride in first):
            return replace(self, axes=rest)
        return replace(self, axes=rest, outer=(*self.outer, (level, first)))


def whole(source: int, shape: Sequence[int], *, is_weight: bool) -> View:
    """Return the view of a whole array."""
    axes = tuple(
        ((n, stride),) if n > 1 else () for n, stride in zip(shape, row_major(shape), strict=True)
    )
    return View(source, is_weight, 0, axes)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a row-major array, in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def stretched(size: int) -> Axes:
    """Return an axis along which one element is repeated."""
    return ((size, 0),) if size > 1 else ()


def flat(axes: Sequence[Axes]) -> Axes:
    """Return all pairs of several axes as one."""
    return tuple(pair for axis in axes for pair in axis)


def extent(axes: Axes) -> int:
    """Return the number of elements along an axis."""
    return prod(size for size, _ in axes)


def regroup(axes: Axes, shape: Sequence[int]) -> tuple[Axes, ...] | None:
    """Cut the pairs of ``axes`` into one group per entry of ``shape``, or return None."""
    queue, groups = list(axes), []
    for n in shape:
        group: list[tuple[int, int]] = []
        while n > 1:
            if not queue:
                return None
            size, stride = queue.pop(0)
            if n % size == 0:
                group.append((size, stride))
                n //= size
            elif size % n == 0:
                group.append((n, stride * (size // n)))
                queue.insert(0, (size // n, stride))
                n = 1
            elif queue and stride == queue[0][0] * queue[0][1]:
                inner, stride = queue.pop(0)
                queue.insert(0, (size * inner, stride))
            else:
                return None
        groups.append(tuple(group))
    return None if queue else tuple(groups)


def refine(a: Axes, b: Axes) -> list[tuple[int, int, int]] | None:
    """Cut two axes of one length into common (size, stride in a, stride in b), or return None."""
    left, right, pieces = list(a), list(b), []
    while left and right:
        (m, s), (n, t) = left.pop(0), right.pop(0)
        size = min(m, n)
        if max(m, n) % size:
            return None
        if m > size:
            left.insert(0, (m // size, s))
            # The outer part of a pair has the larger stride.
            s *= m // size
        if n > size:
            right.insert(0, (n // size, t))
            t *= n // size
        pieces.append((size, s, t))
    return None if left or right else pieces


def _cut(axes: Axes, start: int, size: int, step: int) -> tuple[int, Axes] | None:
    """Return the offset and the axis of a slice of one axis, or None."""
    if size == extent(axes) and start == 0:
        return 0, axes
    if size == 0:
        return None
    stride, inner = axes[0][1], axes[1:]
    below = extent(inner)
    if size == 1:
        return _position(axes, start), ()
    if inner and (step != 1 or start % below or size % below):
        return None
    first, count = start // below, size // below
    head = ((count, stride * step),) if count > 1 else ()
    return first * stride, head + inner


def _position(axes: Axes, index: int) -> int:
    """Return the flat position of one element along an axis."""
    position = 0
    for size, stride in reversed(axes):
        position += (index % size) * stride
        index //= size
    return position
