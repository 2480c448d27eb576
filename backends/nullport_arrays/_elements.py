"""How a parameter is the matrix, or stack of matrices, that a layer uses it as.

Parameters of array networks are used whole: an axis of the layout for every axis of the parameter,
in some order. Such a layout is a reshape and a permutation, which every namespace has.
"""

from __future__ import annotations

from math import prod

from nullport.network import Layout, matrix

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
