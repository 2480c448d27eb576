"""A product with a parameter as a site: which axes are stack, samples, outputs and inputs.

``dot_general`` has three kinds of axes: batch axes (in both operands and the output), contracted
axes (in both operands) and free ones (in one operand and the output). A batch axis that indexes
the weight is a stack axis; any other is samples, as are the free axes of the input. A scan around
the product is one more batch axis, in front: of the stack if the weight is scanned along, of
samples if it is the same in every iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, TypeAlias

import jax

from nullport.network import Axes, DenseSite, Layout, Site
from nullport_jax._view import View, flat, row_major


class NotLinear(Exception):  # noqa: N818
    """The operation is no linear map of rows with this weight; the message says why."""


@dataclass(frozen=True)
class Axis:
    """One axis of a product.

    Attributes:
        weight: Its pairs in the weight's parameter; empty if it does not index the weight.
        x: Its place in the input, scans in front, or None.
        y: Its place in the output, scans in front, or None.
        size: Its length in the output; 0 where it is not there.
        stride: Its stride in the row-major output of one iteration; 0 for a scan.
        level: Level of the scan it stands for, or None.
    """

    weight: Axes
    x: int | None
    y: int | None
    size: int = 0
    stride: int = 0
    level: int | None = None


@dataclass(frozen=True)
class Roles:
    """The axes of a product by what they are to the site; see :func:`sort`."""

    stack: tuple[Axis, ...]
    samples: tuple[Axis, ...]
    out: tuple[Axis, ...]
    inp: tuple[Axis, ...]

    def layout(self, weight: View) -> Layout:
        """Return where the weight lives in its parameter.

        Raises:
            NotLinear: If the weight is repeated along one of its axes.
        """
        stack, out, inp = (flat([a.weight for a in p]) for p in (self.stack, self.out, self.inp))
        if any(stride == 0 for _, stride in stack + out + inp):
            msg = "repeated along an axis (broadcast_in_dim)"
            raise NotLinear(msg)
        return Layout(weight.offset, stack, out, inp or ((1, 1),))


class Spec(Protocol):
    """What is known of a site before anything is evaluated.

    Attributes:
        shape: Shape of the output in one iteration of the scans around it.
        dtype: Its dtype.
        roles: Its axes.
        layout: Where the weight lives in its parameter.
        stopped: Whether no gradient flows from here to the weight.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def roles(self) -> Roles: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def stopped(self) -> bool: ...

    def inputs(self, x: jax.Array) -> jax.Array:
        """Return the operand ``x``, with an axis per scan in front, as the site holds it."""

    def cotangents(self, delta: jax.Array) -> jax.Array:
        """Return the gradient of the output, likewise."""

    def site(self, inputs: jax.Array, cotangent: jax.Array | None, output_norm: jax.Array) -> Site:
        """Return the site."""


def sort(axes: Sequence[Axis]) -> Roles:
    """Sort axes by role; stack, outputs and inputs in the order of the weight's storage."""
    samples = [a for a in axes if a.x is not None and a.y is not None and not _indexes(a.weight)]
    rest = sorted((a for a in axes if a not in samples), key=_rank)
    out = [a for a in rest if a.x is None]
    inp = [a for a in rest if a.y is None]
    stack = [a for a in rest if a.x is not None and a.y is not None]
    return Roles(tuple(stack), tuple(samples), tuple(out), tuple(inp))


def _indexes(weight: Axes) -> bool:
    return any(stride for _, stride in weight)


def _rank(axis: Axis) -> int:
    return -max((stride for _, stride in axis.weight), default=0)


def scan_axes(weight: View, lengths: Sequence[int]) -> list[Axis]:
    """Return the axis that every enclosing scan adds in front."""
    taken = dict(weight.outer)
    return [
        Axis(taken.get(level, ()), level, level, n, level=level) for level, n in enumerate(lengths)
    ]


@dataclass(frozen=True)
class DenseSpec:
    """A ``dot_general``; see :class:`Spec`."""

    shape: tuple[int, ...]
    dtype: Any
    roles: Roles
    layout: Layout
    stopped: bool

    def inputs(self, x: jax.Array) -> jax.Array:
        """Return ``x`` as rows, shape (samples, in), or (stack, samples, in)."""
        return rows(x, *([a.x for a in part] for part in self._parts(self.roles.inp)))

    def cotangents(self, delta: jax.Array) -> jax.Array:
        """Return ``delta`` as rows, shape (samples, out), or (stack, samples, out)."""
        return rows(delta, *([a.y for a in part] for part in self._parts(self.roles.out)))

    def outputs(self, found: jax.Array) -> jax.Array:
        """Return rows of outputs, shaped as ``cotangents`` returns them, in the site's own shape.

        For sites outside of scans.
        """
        order = [a.y for part in self._parts(self.roles.out) for a in part if a.y is not None]
        back = sorted(range(len(order)), key=order.__getitem__)
        return found.reshape([self.shape[i] for i in order]).transpose(back)

    def site(
        self, inputs: jax.Array, cotangent: jax.Array | None, output_norm: jax.Array
    ) -> DenseSite:
        """Return the site."""
        return DenseSite("dot_general", inputs, cotangent, output_norm)

    def _parts(self, last: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], ...]:
        return self.roles.stack, self.roles.samples, last


def rows(a: jax.Array, *parts: Sequence[int | None]) -> jax.Array:
    """Return ``a`` with the axes of every part merged; without the first part if it is empty."""
    places = [[i for i in part if i is not None] for part in parts]
    if not places[0]:
        del places[0]
    shape = [prod(a.shape[i] for i in part) for part in places]
    return a.transpose([i for part in places for i in part]).reshape(shape)


def dense_spec(
    weight: View, side: int, params: dict[str, Any], x_ndim: int, out: Any, lengths: Sequence[int]
) -> DenseSpec:
    """Read a ``dot_general`` as a linear map.

    Args:
        weight: View of the operand that is the weight.
        side: Which operand that is, 0 or 1.
        params: Parameters of the primitive.
        x_ndim: Number of axes of the other operand.
        out: Abstract value of the output.
        lengths: Lengths of the scans around the product.

    Raises:
        NotLinear: If the weight is repeated along an axis.
    """
    contracted, batch = params["dimension_numbers"]
    own, other = (contracted[side], batch[side]), (contracted[1 - side], batch[1 - side])
    w_free = [i for i in range(len(weight.axes)) if i not in (*own[0], *own[1])]
    x_free = [i for i in range(x_ndim) if i not in (*other[0], *other[1])]
    outs, samples = [(i, None) for i in w_free], [(None, j) for j in x_free]
    order: list[Pair] = list(zip(own[1], other[1], strict=True))
    order += [*samples, *outs] if side else [*outs, *samples]
    return product_spec(weight, order, [*zip(own[0], other[0], strict=True)], out, lengths)


Pair: TypeAlias = "tuple[int | None, int | None]"
"""An axis of the weight and of the input."""


def product_spec(
    weight: View,
    order: Sequence[Pair],
    contracted: Sequence[tuple[int, int]],
    out: Any,
    lengths: Sequence[int],
) -> DenseSpec:
    """Return the site of a product.

    Args:
        weight: View of the weight.
        order: Which axis of the weight and of the input every axis of the output is.
        contracted: The axes of both that are summed over.
        out: Abstract value of the output.
        lengths: Lengths of the scans around the product.

    Raises:
        NotLinear: If the weight is repeated along an axis.
    """
    levels, strides = len(lengths), row_major(out.shape)
    axes = scan_axes(weight, lengths)
    for k, (i, j) in enumerate(order):
        x = None if j is None else levels + j
        pairs = () if i is None else weight.axes[i]
        axes.append(Axis(pairs, x, levels + k, out.shape[k], strides[k]))
    axes += [Axis(weight.axes[i], levels + j, None) for i, j in contracted]
    roles = sort(axes)
    return DenseSpec(tuple(out.shape), out.dtype, roles, roles.layout(weight), weight.stopped)
