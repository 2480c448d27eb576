"""Convolutions as linear maps on patches, in any number of dimensions, layout and dilation.

A transposed convolution is one whose input is dilated. The direction ``delta^T Xdot`` is the
transpose of the convolution in its kernel: no patches are made for it. Only the Gram matrix and
the row space need patches, and get them in chunks. A patch row holds, for one output position, the
inputs that one output channel of a group sees, ordered (channel, *kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nullport.network import Layout, Site
from nullport_jax._sites import Axis, NotLinear, Roles, rows, scan_axes
from nullport_jax._view import View, extent, regroup, row_major

CHUNK = 1 << 22
"""Largest number of patch elements made at a time."""


@dataclass(frozen=True)
class Geometry:
    """What a convolution needs besides its operands; one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``lax.conv_general_dilated`` that do not depend on groups."""
        return {
            "window_strides": self.stride,
            "padding": self.padding,
            "lhs_dilation": self.lhs_dilation,
            "rhs_dilation": self.rhs_dilation,
        }


@dataclass(frozen=True)
class ConvSite:
    """One use of a convolution's kernel.

    Attributes:
        kind: Name of the operation.
        inputs: Input, shape (batch, channels, *space), or with a stack axis in front.
        cotangent: Gradient of the output, likewise, or None.
        output_norm: Norm of the output, 0-d.
        geometry: Stride, padding and the rest.
        positions: Number of output positions per sample.
    """

    kind: str
    inputs: jax.Array
    cotangent: jax.Array | None
    output_norm: jax.Array
    geometry: Geometry
    positions: int

    @property
    def _stacked(self) -> bool:
        return self.inputs.ndim > len(self.geometry.kernel) + 2

    @property
    def samples(self) -> int:
        """Number of patches."""
        return int(self.inputs.shape[1 if self._stacked else 0]) * self.positions

    def weight_gradient(self, inputs: jax.Array, probe: jax.Array | None = None) -> jax.Array:
        """Return the weight gradient at ``inputs``: (..., out, in), or (..., 1, in) with ``probe``.

        Raises:
            ValueError: If the site has no cotangent.
        """
        g, groups = self.geometry, self.geometry.groups

        def gradient(x: jax.Array, delta: jax.Array) -> jax.Array:
            if probe is not None:
                split = delta.reshape(delta.shape[0], groups, -1, *delta.shape[2:])
                delta = jnp.einsum("ngo...,o->ng...", split, probe.astype(x.dtype))
            kernel = _kernel_gradient(g, x, delta)
            return kernel.reshape(groups, kernel.shape[0] // groups, -1)

        return self._each(gradient, inputs, self._delta().astype(inputs.dtype))

    def bias_gradient(self) -> jax.Array:
        """Return the sum of the cotangent over samples and positions, (out) or (stack, out).

        Raises:
            ValueError: If the site has no cotangent.
        """

        def total(delta: jax.Array) -> jax.Array:
            sums = delta.sum(axis=(0, *range(2, delta.ndim)))
            return sums.reshape(self.geometry.groups, -1)

        return self._each(total, self._delta())

    def rows(self, every: int = 1) -> Iterator[jax.Array]:
        """Yield patches, each chunk of shape (n, in) or (stack, n, in); one in ``every``."""
        axis = 1 if self._stacked else 0
        # Whole samples are left out first: that saves making their patches.
        apart = max(1, min(every, self.inputs.shape[axis]))
        x = lax.slice_in_dim(self.inputs, 0, None, apart, axis=axis)
        features = x.shape[axis + 1] * prod(self.geometry.kernel)
        elements = max(1, prod(x.shape[:axis]) * self.positions * features)
        step = max(1, CHUNK // elements)
        for start in range(0, x.shape[axis], step):
            chunk = lax.slice_in_dim(x, start, min(start + step, x.shape[axis]), axis=axis)
            found = self._each(lambda x: patches(self.geometry, x), chunk)
            yield found[..., :: max(1, every // apart), :]

    def apply(self, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Return the output for another weight (..., out, in) and bias (..., out) or None."""
        g, x = self.geometry, self.inputs.astype(weight.dtype)
        stack = (x.shape[0],) if self._stacked else ()

        def convolve(x: jax.Array, matrices: jax.Array) -> jax.Array:
            kernel = matrices.reshape(-1, x.shape[1] // g.groups, *g.kernel)
            return lax.conv_general_dilated(x, kernel, feature_group_count=g.groups, **g.options())

        function = jax.vmap(convolve) if stack else convolve
        output = function(x, weight.reshape(*stack, -1, weight.shape[-1]))
        if bias is None:
            return output
        return output + bias.reshape(*stack, 1, -1, *([1] * len(g.kernel)))

    def _delta(self) -> jax.Array:
        if self.cotangent is None:
            msg = "this site has no cotangent: the loss does not depend on it"
            raise ValueError(msg)
        return self.cotangent

    def _each(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """Apply ``function`` per entry of the stack; join the stack with the groups in front."""
        if not self._stacked:
            result = function(*arrays)
            return result if self.geometry.groups > 1 else result[0]
        result = jax.vmap(function)(*arrays)
        return result.reshape(-1, *result.shape[2:])


def _kernel_gradient(g: Geometry, x: jax.Array, delta: jax.Array) -> jax.Array:
    """Return the gradient of a kernel with as many outputs as ``delta`` has channels."""
    shape = (delta.shape[1], x.shape[1] // g.groups, *g.kernel)

    def convolve(kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, feature_group_count=g.groups, **g.options())

    like = jnp.zeros(shape, x.dtype)  # only its shape is used
    (gradient,) = jax.linear_transpose(convolve, like)(delta)
    return jnp.asarray(gradient)


def patches(g: Geometry, x: jax.Array) -> jax.Array:
    """Return the patches of ``x`` (batch, channels, *space) as rows (groups, n, in)."""
    found = lax.conv_general_dilated_patches(
        x, g.kernel, g.stride, g.padding, g.lhs_dilation, g.rhs_dilation,
        precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    n, features = found.shape[:2]
    split = found.reshape(n, g.groups, features // g.groups, -1)
    return split.transpose(1, 0, 3, 2).reshape(g.groups, -1, features // g.groups)


@dataclass(frozen=True)
class ConvSpec:
    """A ``conv_general_dilated``; see :class:`nullport_jax._sites.Spec`."""

    shape: tuple[int, ...]
    dtype: Any
    roles: Roles
    layout: Layout
    stopped: bool
    geometry: Geometry
    x_order: tuple[int, ...]
    y_order: tuple[int, ...]
    levels: int
    batch_groups: int = 1

    def inputs(self, x: jax.Array) -> jax.Array:
        """Return ``x`` as (batch, channels, *space), or with a stack axis in front.

        Groups of samples, each with kernels of its own, become groups of channels.
        """
        if self.batch_groups == 1:
            return self._standard(x, self.x_order)
        x = x.transpose(*range(self.levels), *(self.levels + i for i in self.x_order))
        scans, (n, channels, *space) = x.shape[: self.levels], x.shape[self.levels :]
        groups = self.batch_groups
        x = x.reshape(*scans, groups, n // groups, channels, *space)
        x = jnp.moveaxis(x, self.levels, self.levels + 1)
        x = x.reshape(*scans, n // groups, groups * channels, *space)
        return self._standard(x, tuple(range(2 + len(space))))

    def cotangents(self, delta: jax.Array) -> jax.Array:
        """Return ``delta`` as (batch, channels, *space), or with a stack axis in front."""
        return self._standard(delta, self.y_order)

    def output_rows(self, y: jax.Array) -> jax.Array:
        """Return outputs in the shape of cotangents as rows, (stack, samples, out)."""
        groups = self.geometry.groups
        stack = y.shape[0] if y.ndim > len(self.geometry.kernel) + 2 else 1
        split = y.reshape(
            stack,
            -1,
            groups,
            y.shape[-len(self.geometry.kernel) - 1] // groups,
            prod(y.shape[-len(self.geometry.kernel) :]),
        )
        return split.transpose(0, 2, 1, 4, 3).reshape(stack * groups, -1, split.shape[3])

    def site(self, inputs: jax.Array, cotangent: jax.Array | None, output_norm: jax.Array) -> Site:
        """Return the site."""
        positions = prod(self.shape[i] for i in self.y_order[2:])
        return ConvSite(
            "conv_general_dilated", inputs, cotangent, output_norm, self.geometry, positions
        )

    def _standard(self, a: jax.Array, order: tuple[int, ...]) -> jax.Array:
        """Put channels after the batch, and scans into the batch or the stack."""
        stack = [a.level for a in self.roles.stack if a.level is not None]
        samples = [level for level in range(self.levels) if level not in stack]
        batch, *rest = (self.levels + i for i in order)
        return rows(a, stack, [*samples, batch], *([i] for i in rest))


def conv_spec(
    weight: View, side: int, params: dict[str, Any], x_ndim: int, out: Any, lengths: Sequence[int]
) -> ConvSpec:
    """Read a convolution as a linear map; arguments as for ``dense_spec``.

    Raises:
        NotLinear: If the parameter is not its kernel.
    """
    del x_ndim
    if side == 0:
        msg = "the input of a convolution (conv_general_dilated)"
        raise NotLinear(msg)
    x_spec, w_spec, y_spec = params["dimension_numbers"]
    batch_groups, levels = int(params["batch_group_count"]), len(lengths)
    groups = int(params["feature_group_count"]) * batch_groups  # one of both is 1
    split = regroup(weight.axes[w_spec[0]], (groups, out.shape[y_spec[1]] // groups))
    if split is None:
        msg = "cut across the groups of a convolution"
        raise NotLinear(msg)
    strides = row_major(out.shape)
    channel, per_group = y_spec[1], out.shape[y_spec[1]] // groups
    scans = scan_axes(weight, lengths)
    samples = [
        Axis((), levels + i, levels + j, out.shape[j], strides[j])
        for i, j in zip((x_spec[0], *x_spec[2:]), (y_spec[0], *y_spec[2:]), strict=True)
    ]
    group = Axis(split[0], None, levels + channel, groups, strides[channel] * per_group)
    roles = Roles(
        stack=tuple(a for a in [*scans, group] if a.weight),
        samples=(*(a for a in scans if not a.weight), *samples),
        out=(Axis(split[1], None, levels + channel, per_group, strides[channel]),),
        inp=tuple(Axis(weight.axes[i], levels + j, None) for i, j in _pairs(w_spec, x_spec)),
    )
    geometry = Geometry(
        tuple(extent(weight.axes[i]) for i in w_spec[2:]),
        tuple(params["window_strides"]),
        tuple((int(a), int(b)) for a, b in params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        groups,
    )
    return ConvSpec(
        tuple(out.shape), out.dtype, roles, roles.layout(weight), weight.stopped,
        geometry, tuple(x_spec), tuple(y_spec), levels, batch_groups,
    )  # fmt: skip


def _pairs(w_spec: Sequence[int], x_spec: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the input axes of the kernel with those of the input: channel, then space."""
    return zip(w_spec[1:], x_spec[1:], strict=True)
