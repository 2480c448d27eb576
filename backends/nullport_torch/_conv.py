"""Convolutions as linear maps on patches, in 1, 2 or 3 dimensions, transposed or not.

The direction ``delta^T Xdot`` is torch's own weight-gradient kernel: no patches are made for it.
Only the Gram matrix and the row space need patches, and get them in chunks. A patch row holds, for
one output position, the inputs that one output channel of a group sees, ordered (channel, *kernel)
as in the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nullport.network import Layout

CHUNK = 1 << 22
"""Largest number of patch elements made at a time."""


@dataclass(frozen=True)
class Geometry:
    """What a convolution needs besides its operands; one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool


def _tuple(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value))


def geometry(
    dims: int,
    w: Tensor,
    *,
    transposed: bool,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    output_padding: Any = 0,
) -> Geometry:
    """Normalise the arguments of ``F.conv*d`` and ``F.conv_transpose*d``."""
    kernel = tuple(w.shape[2:])
    spread = _tuple(dilation, dims)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in _tuple(padding, dims))
    return Geometry(
        kernel, _tuple(stride, dims), pads, spread, _tuple(output_padding, dims), groups, transposed
    )


def weight_layout(g: Geometry, w: Tensor, offset: int) -> Layout:
    """Return how the weight is read as a stack of matrices (groups, out, in * kernel)."""
    (first, second), strides = w.shape[:2], w.stride()
    kernel = tuple(zip(w.shape[2:], strides[2:], strict=True))
    per_group = first // g.groups
    stack = ((g.groups, per_group * strides[0]),) if g.groups > 1 else ()
    lead, other = (per_group, strides[0]), (second, strides[1])
    out, inp = (other, lead) if g.transposed else (lead, other)
    return Layout(offset, stack, (out,), (inp, *kernel))


def bias_layout(g: Geometry, b: Tensor, offset: int) -> Layout:
    """Return how the bias is read as a stack of vectors (groups, out)."""
    per_group, stride = b.shape[0] // g.groups, b.stride(0)
    stack = ((g.groups, per_group * stride),) if g.groups > 1 else ()
    return Layout(offset, stack, ((per_group, stride),), ())


@dataclass(frozen=True)
class ConvSite:
    """One use of a convolution's weight.

    Attributes:
        kind: Name of the function.
        inputs: Input, shape (batch, channels, *space).
        cotangent: Gradient of the output, (batch, out channels, *space), or None.
        output_norm: Norm of the output, 0-d.
        geometry: Stride, padding and the rest.
        positions: Number of output positions per sample.
    """

    kind: str
    inputs: Tensor
    cotangent: Tensor | None
    output_norm: Tensor
    geometry: Geometry
    positions: int

    @property
    def samples(self) -> int:
        """Number of patches."""
        return self.inputs.shape[0] * self.positions

    def weight_gradient(self, inputs: Tensor, probe: Tensor | None = None) -> Tensor:
        """Return the weight gradient at ``inputs``: (..., out, in), or (..., 1, in) with ``probe``.

        Raises:
            ValueError: If the site has no cotangent.
        """
        if self.cotangent is None:
            msg = "this site has no cotangent: the loss does not depend on it"
            raise ValueError(msg)
        g, delta = self.geometry, self.cotangent.to(inputs.dtype)
        if probe is not None:
            split = delta.unflatten(1, (g.groups, -1))
            delta = torch.einsum("ngo...,o->ng...", split, probe.to(inputs.dtype))
        gradient = _kernel_gradient(g, inputs, delta)
        return as_matrices(g, gradient)

    def bias_gradient(self) -> Tensor:
        """Return the sum of the cotangent over samples and positions, (out) or (groups, out).

        Raises:
            ValueError: If the site has no cotangent.
        """
        if self.cotangent is None:
            msg = "this site has no cotangent: the loss does not depend on it"
            raise ValueError(msg)
        total = self.cotangent.transpose(0, 1).flatten(1).sum(1)
        return total.unflatten(0, (self.geometry.groups, -1)) if self.geometry.groups > 1 else total

    def rows(self, every: int = 1) -> Iterator[Tensor]:
        """Yield patches, each chunk of shape (n, in) or (groups, n, in); one in ``every``."""
        features = self.inputs.shape[1] * torch.Size(self.geometry.kernel).numel()
        per_sample = max(1, self.positions * features)
        # Whole samples are left out first: that saves making their patches.
        apart = max(1, min(every, self.inputs.shape[0]))
        for chunk in self.inputs[::apart].split(max(1, CHUNK // per_sample)):
            yield patches(self.geometry, chunk)[..., :: max(1, every // apart), :]

    def apply(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the layer's output for another weight (..., out, in), bias (..., out) or None."""
        g, x = self.geometry, self.inputs.to(weight.dtype)
        padding = [left for left, _ in g.padding]
        if any(left != right for left, right in g.padding):
            x, padding = _pad(x, g.padding), [0] * len(g.kernel)
        matrices = weight if g.groups > 1 else weight[None]
        kernel = matrices.unflatten(-1, (-1, *g.kernel))
        kernel = (kernel.transpose(1, 2) if g.transposed else kernel).flatten(0, 1)
        output: Tensor = torch.ops.aten.convolution(
            x,
            kernel,
            None if bias is None else bias.flatten(),
            g.stride,
            padding,
            g.dilation,
            g.transposed,
            g.output_padding,
            g.groups,
        )
        return output


def _kernel_gradient(g: Geometry, x: Tensor, delta: Tensor) -> Tensor:
    """Torch's weight-gradient kernel, in the shape of a weight with ``delta``'s channels."""
    dims, groups = len(g.kernel), g.groups
    padding = [left for left, _ in g.padding]
    if any(left != right for left, right in g.padding):
        x, padding = _pad(x, g.padding), [0] * dims
    if g.transposed:
        shape = (x.shape[1], delta.shape[1] // groups, *g.kernel)
    else:
        shape = (delta.shape[1], x.shape[1] // groups, *g.kernel)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        delta.contiguous(),
        x,
        x.new_empty(1).expand(shape),
        None,
        g.stride,
        padding,
        g.dilation,
        g.transposed,
        g.output_padding,
        groups,
        (False, True, False),
    )[1]
    return gradient


def as_matrices(g: Geometry, gradient: Tensor) -> Tensor:
    """Reshape a weight-shaped gradient to (out, in * kernel) or (groups, out, in * kernel)."""
    split = gradient.unflatten(0, (g.groups, -1))
    if g.transposed:
        split = split.transpose(1, 2)
    matrices: Tensor = split.flatten(2)
    return matrices if g.groups > 1 else matrices[0]


def _pad(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    flat = [side for pair in reversed(pads) for side in pair]
    return torch.nn.functional.pad(x, flat)


def patches(g: Geometry, x: Tensor) -> Tensor:
    """Return the patches of ``x`` (batch, channels, *space) as rows.

    Returns:
        Shape (n, in), or (groups, n, in), rows ordered by sample and output position.
    """
    flip = g.transposed
    stride = g.stride
    if g.transposed:
        x, stride = _spread(g, x), (1,) * len(g.kernel)
    else:
        x = _pad(x, g.padding)
    for axis, (k, s, d) in enumerate(zip(g.kernel, stride, g.dilation, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    dims = len(g.kernel)
    if flip:
        x = x.flip(tuple(range(2 + dims, 2 + 2 * dims)))
    x = x.unflatten(1, (g.groups, -1)).movedim((1, 2), (0, 2 + dims))
    rows = x.reshape(g.groups, -1, x.shape[2 + dims] * torch.Size(g.kernel).numel())
    return rows if g.groups > 1 else rows[0]


def _spread(g: Geometry, x: Tensor) -> Tensor:
    """Insert the zeros of a transposed convolution, so that patches have stride 1."""
    space = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], g.stride, strict=True)]
    wide = x.new_zeros((*x.shape[:2], *space))
    inside: Any = (..., *(slice(None, None, s) for s in g.stride))
    wide[inside] = x
    pads = [
        (d * (k - 1) - left, d * (k - 1) - right + extra)
        for d, k, (left, right), extra in zip(
            g.dilation, g.kernel, g.padding, g.output_padding, strict=True
        )
    ]
    return _pad(wide, pads)
