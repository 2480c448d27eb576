"""Reading and changing a parameter as the matrix, or stack of matrices, that a layer uses it as.

Parameters of array networks are used whole: an axis of the layout for every axis of the parameter,
in some order. Such a layout is a reshape and a permutation, which every namespace has.
"""

from __future__ import annotations

from math import prod

from nullport._arrays import Array, namespace
from nullport._graph import Move
from nullport._layout import Layout, matrix

ORIENTATIONS = ("in_out", "out_in")
"""How a weight is stored: ``Y = X W`` or ``Y = X W^T``."""


def layout_of(shape: tuple[int, ...], orientation: str, *, stack: int = 0) -> Layout:
    """Return the layout of a weight.

    Args:
        shape: Shape of the parameter. For ``"in_out"`` the last axis is the output, for
            ``"out_in"`` the first one after the stack; the other axes are inputs.
        orientation: One of ``ORIENTATIONS``, or ``"last_in"``: the last axis is the input, all
            others after the stack are outputs.
        stack: Number of leading axes that are a stack of matrices.

    >>> layout_of((3, 4), "in_out").out
    ((4, 1),)
    """
    lead, rest = shape[:stack], shape[stack:]
    if orientation == "out_in":
        return matrix(lead, rest[0], prod(rest[1:]))
    if orientation == "last_in":
        return matrix(lead, prod(rest[:-1]), rest[-1])
    inputs, outputs = prod(rest[:-1]), rest[-1]
    stored = matrix(lead, inputs, outputs)
    return Layout(stored.offset, stored.stack, stored.inp, stored.out)


def bias_layout(shape: tuple[int, ...], *, stack: int = 0) -> Layout:
    """Return the layout of a bias whose axes after the stack are all outputs."""
    return matrix(shape[:stack], prod(shape[stack:]), None)


def read(array: Array, layout: Layout) -> Array:
    """Return ``array`` as the layout sees it, shape (..., out, in) or (..., out)."""
    stored, order, shape = _axes(layout)
    xp = namespace(array)
    return xp.reshape(xp.permute_dims(xp.reshape(array, stored), order), shape)


def moved(array: Array, move: Move) -> Array:
    """Return a parameter with a change added, in its own shape and dtype."""
    xp, move = namespace(array), move.as_stored()
    delta = move.right if move.left is None else xp.matrix_transpose(move.left) @ move.right
    delta = stored(delta, move.layout, array.shape)
    if move.left is not None and delta.dtype == array.dtype:
        delta += array  # the product is nobody else's, and as large as the weight
        return delta
    wide = xp.result_type(array.dtype, delta.dtype)
    total = xp.astype(array, wide, copy=False) + xp.astype(delta, wide, copy=False)
    return xp.astype(total, array.dtype, copy=False)


def _axes(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the stored shape, the order in which the layout has its axes, and its own shape."""
    axes = layout.axes
    ranked = sorted(range(len(axes)), key=lambda i: -axes[i][1])
    stored = tuple(axes[i][0] for i in ranked)
    order = tuple(ranked.index(i) for i in range(len(axes)))
    parts = [layout.out, layout.inp] if layout.inp else [layout.out]
    stack = tuple(size for size, _ in layout.stack)
    return stored, order, (*stack, *(prod(size for size, _ in part) for part in parts))


def stored(matrix: Array, layout: Layout, shape: tuple[int, ...]) -> Array:
    """Return a matrix, shaped as ``read`` returns it, in the shape of the parameter."""
    _, order, _ = _axes(layout)
    xp = namespace(matrix)
    sizes = tuple(size for size, _ in layout.axes)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return xp.reshape(xp.permute_dims(xp.reshape(matrix, sizes), back), shape)
