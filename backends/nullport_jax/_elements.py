"""Reading and changing the elements of a parameter that a layout names.

A layout whose strides nest is a box: the flat parameter is reshaped so that every pair of the
layout is an axis, sliced and transposed. Any other layout is a gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp

from nullport._graph import Move
from nullport._layout import Axes, Layout


@dataclass(frozen=True)
class Box:
    """A slice of a reshaped parameter.

    Attributes:
        shape: Shape in which every axis of the layout is an axis.
        slices: What of it is named.
        order: Axes of that slice in the order of the layout; the others have size 1.
    """

    shape: tuple[int, ...]
    slices: tuple[slice, ...]
    order: tuple[int, ...]


def shape_of(layout: Layout) -> tuple[int, ...]:
    """Return the shape in which a layout is read: (stack, out, in) or (stack, out)."""
    parts = [layout.out, layout.inp] if layout.inp else [layout.out]
    stack = [prod(size for size, _ in layout.stack)] if layout.stack else []
    return (*stack, *(prod(size for size, _ in part) for part in parts))


def read(array: jax.Array, layout: Layout) -> jax.Array:
    """Return the elements of ``array`` that ``layout`` names, shaped (stack, out, in)."""
    axes = _pairs(layout)
    box = _box(axes, layout.offset, array.size)
    if box is None:
        return array.reshape(-1)[_positions(axes, layout.offset)].reshape(shape_of(layout))
    part = array.reshape(box.shape)[box.slices]
    rest = tuple(i for i in range(part.ndim) if i not in box.order)
    return part.transpose(box.order + rest).reshape(shape_of(layout))


def moved(array: jax.Array, move: Move) -> jax.Array:
    """Return ``array`` with a change added to the elements that its layout names."""
    move = move.as_stored()
    delta = move.right if move.left is None else jnp.matrix_transpose(move.left) @ move.right
    axes, layout = _pairs(move.layout), move.layout
    delta = delta.reshape(tuple(size for size, _ in axes))
    wide = array.astype(jnp.promote_types(array.dtype, delta.dtype))
    box = _box(axes, layout.offset, array.size)
    if box is None:
        where = _positions(axes, layout.offset)
        out = wide.reshape(-1).at[where].add(delta, unique_indices=True)
    else:
        out = _added(wide.reshape(box.shape), box, delta)
    return out.reshape(array.shape).astype(array.dtype)


def _added(whole: jax.Array, box: Box, delta: jax.Array) -> jax.Array:
    """Add ``delta``, axes in the order of the layout, to a slice of ``whole``."""
    rest = tuple(i for i in range(whole.ndim) if i not in box.order)
    delta = jnp.expand_dims(delta, tuple(range(delta.ndim, whole.ndim)))
    order = box.order + rest
    delta = delta.transpose(sorted(range(whole.ndim), key=order.__getitem__))
    if delta.shape == whole.shape:
        return whole + delta
    return whole.at[box.slices].add(delta, unique_indices=True)


def _pairs(layout: Layout) -> Axes:
    return tuple((size, stride) for size, stride in layout.axes if size > 1)


def _box(axes: Axes, offset: int, size: int) -> Box | None:
    """Return the box of elements, or None if the strides do not nest."""
    ranked = sorted(range(len(axes)), key=lambda i: -axes[i][1])
    shape: list[int] = []
    slices: list[slice] = []
    outer = size
    for i in ranked:
        count, stride = axes[i]
        if outer % stride:
            return None
        start = offset % outer // stride
        if start + count > outer // stride:
            return None
        shape.append(outer // stride)
        slices.append(slice(start, start + count))
        outer = stride
    shape.append(outer)
    slices.append(slice(offset % outer, offset % outer + 1))
    order = tuple(ranked.index(i) for i in range(len(axes)))
    return Box(tuple(shape), tuple(slices), order)


def _positions(axes: Sequence[tuple[int, int]], offset: int) -> jax.Array:
    """Return the flat positions of all elements, one axis per pair."""
    positions = jnp.full(tuple(size for size, _ in axes), offset)
    for axis, (size, stride) in enumerate(axes):
        steps = jnp.arange(size) * stride
        positions = positions + jnp.expand_dims(
            steps, tuple(i for i in range(len(axes)) if i != axis)
        )
    return positions
