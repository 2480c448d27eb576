"""A bias: a parameter added to the output of a site, the same for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nullport.network import Axes, Layout
from nullport_jax._sites import Axis, Spec
from nullport_jax._view import View, extent, flat, refine, stretched


def bias_layout(spec: Spec, output: View, bias: View) -> Layout | None:
    """Return where the bias of a site lives in its parameter, or None if it is no bias.

    Args:
        spec: The site.
        output: View of the whole output of the site.
        bias: View of what is added to it.
    """
    if len(output.axes) != len(bias.axes):
        return None
    pieces: list[tuple[int, int, int]] = []
    for mine, theirs in zip(output.axes, bias.axes, strict=True):
        refined = refine(mine, theirs or stretched(extent(mine)))
        if refined is None:
            return None
        pieces += refined
    # Every element of the output once: no part of it, and nothing repeated.
    if prod(n for n, _, _ in pieces) != prod(spec.shape) or any(t == 0 for _, t, _ in pieces):
        return None
    bounds = {a.stride for part in (spec.roles.stack, spec.roles.out) for a in part}
    pieces = [cut for piece in pieces for cut in _cut(piece, sorted(bounds, reverse=True))]
    taken = dict(bias.outer)

    def part(axis: Axis) -> Axes:
        """Return the pairs of the bias along an axis of the output."""
        if axis.level is not None:
            return taken.get(axis.level, ())
        inside = [p for p in pieces if axis.stride <= p[1] < axis.stride * axis.size]
        return tuple((n, t) for n, _, t in sorted(inside, key=lambda p: -p[1]))

    if any(stride for axis in spec.roles.samples for _, stride in part(axis)):
        return None
    groups = [[part(axis) for axis in axes] for axes in (spec.roles.stack, spec.roles.out)]
    for axes, found in zip((spec.roles.stack, spec.roles.out), groups, strict=True):
        for axis, pairs in zip(axes, found, strict=True):
            if extent(pairs) != axis.size or any(stride == 0 for _, stride in pairs):
                return None
    stack, out = (flat(found) for found in groups)
    return Layout(bias.offset, stack, out or ((1, 1),), ())


def _cut(piece: tuple[int, int, int], bounds: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut a piece of (size, stride in the output, stride in the bias) where axes begin."""
    found = []
    n, s, t = piece
    for bound in bounds:
        inner = bound // s if s and bound % s == 0 else 0
        if 1 < inner < n and n % inner == 0:
            found.append((n // inner, bound, t * inner))
            n = inner
    return [*found, (n, s, t)]
