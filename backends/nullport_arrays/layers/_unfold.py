"""Patches of images, and their sum back: two linear maps that are each other's transpose.

Along one axis of an image, output position ``o`` and kernel offset ``i`` meet at the input position
``p = o stride + i dilation - padding``. Both axes are alike and done one after the other, which
makes few array operations, and large ones:

    unfold  y[o, i] = x[p]                       (zero where p is outside)
    fold    x[p] = sum of y[o, i] over all (o, i) that meet at p

Images are (n, height, width, ..., c); patches (n, out height, out width, ..., kh kw c), the
features of a patch ordered (kh, kw, c).
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import device

from nullport.network import Array, namespace


@dataclass(frozen=True)
class Window:
    """How a kernel moves along one axis.

    Attributes:
        kernel: Number of offsets.
        stride: Distance of two output positions.
        padding: Zeros at either end.
        dilation: Distance of two offsets.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """Distance of the first offset and the last."""
        return (self.kernel - 1) * self.dilation

    def positions(self, size: int) -> int:
        """Return the number of output positions on ``size`` input positions; 0 if none fits."""
        return max(0, (size + 2 * self.padding - self.reach - 1) // self.stride + 1)


Windows = tuple[Window, Window]
"""For height and width."""


def unfold(x: Array, windows: Windows) -> Array:
    """Return the patches of the images ``x``: (n, h, w, ..., c) -> (n, oh, ow, ..., kh kw c)."""
    for axis, window in ((2, windows[1]), (1, windows[0])):
        x = _gather(x, axis, window)
    return x


def fold(y: Array, windows: Windows, size: tuple[int, int]) -> Array:
    """Sum patches where they come from in images of ``size``: the transpose of :func:`unfold`."""
    for axis, window in ((1, windows[0]), (2, windows[1])):
        y = _scatter(y, axis, window, size[axis - 1])
    return y


def _gather(x: Array, axis: int, window: Window) -> Array:
    """Unfold one axis; the offsets come before the features in the last axis."""
    length = (window.positions(x.shape[axis]) - 1) * window.stride + 1
    x = pad(x, axis, window.padding, window.padding)
    starts = range(0, window.reach + 1, window.dilation)
    parts = [cut(x, axis, start, start + length, window.stride) for start in starts]
    return parts[0] if len(parts) == 1 else namespace(x).concat(parts, axis=-1)


def _scatter(y: Array, axis: int, window: Window, size: int) -> Array:
    """Fold one axis back to ``size`` positions; undoes the order that :func:`_gather` makes."""
    features = y.shape[-1] // window.kernel
    padded = size + 2 * window.padding
    total = None
    for i in range(window.kernel):
        part = _spread(y[..., i * features : (i + 1) * features], axis, window.stride)
        start = i * window.dilation
        part = pad(part, axis, start, padded - start - part.shape[axis])
        total = part if total is None else total + part
    return cut(total, axis, window.padding, window.padding + size)


def _spread(x: Array, axis: int, stride: int) -> Array:
    """Put ``stride - 1`` zeros between the positions of an axis."""
    if stride == 1:
        return x
    xp, shape = namespace(x), x.shape
    wide = pad(xp.expand_dims(x, axis=axis + 1), axis + 1, 0, stride - 1)
    flat = xp.reshape(wide, (*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]))
    return cut(flat, axis, 0, (shape[axis] - 1) * stride + 1)


def pad(x: Array, axis: int, before: int, after: int) -> Array:
    """Put zeros at both ends of an axis."""
    parts = [x]
    if before:
        parts.insert(0, _zeros(x, axis, before))
    if after:
        parts.append(_zeros(x, axis, after))
    return x if len(parts) == 1 else namespace(x).concat(parts, axis=axis)


def _zeros(x: Array, axis: int, size: int) -> Array:
    """Return zeros like ``x``, but of ``size`` along an axis."""
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return namespace(x).zeros(shape, dtype=x.dtype, device=device(x))


def cut(x: Array, axis: int, start: int, stop: int, step: int = 1) -> Array:
    """Return a slice along one axis."""
    index = (*[slice(None)] * axis, slice(start, stop, step), ...)
    return x[index]
