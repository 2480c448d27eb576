"""How far every layer goes in a step: its whole radius, unless a budget allows less.

    reach = min(length ||W||,  budget / ||X N^T|| ||N||),      dW = N reach / ||N||

for the direction ``N`` that was found for it; 0 where it cannot move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_

from nullport._arrays import Array, namespace
from nullport._graph import Move
from nullport._layer import Layer, obstacles


def take_steps(layers: Sequence[Layer], length: float | Array, *, only: bool) -> Iterator[Move]:
    """Scale every direction to ``length * ||W||`` and yield all moves, one layer at a time.

    The scalars of all layers are handled as one array: a step costs a few small operations per
    network instead of a few per layer.

    Args:
        layers: The layers, each with the direction that was found for it.
        length: Relative length of the step.
        only: Whether it is the only step of the teleport.
    """
    moving = [layer for layer in layers if layer.found is not None]
    if not moving:
        return
    xp = namespace(moving[0].size)
    size, share = (xp.stack([getattr(m, name) for m in moving]) for name in ("size", "share"))
    able = xp.stack([layer.able for layer in moving])
    held = reduce(or_, obstacles(size, share).values(), ~able)
    norms = xp.stack([xp.astype(layer.weight_norm, size.dtype) for layer in moving])
    size = xp.where(held, xp.ones_like(size), size)
    reach = xp.where(held, xp.zeros_like(size), length * norms)
    if any(layer.limit is not None for layer in moving):
        allowed = xp.stack([_allowed(layer, size[i]) for i, layer in enumerate(moving)])
        reach = xp.minimum(reach, allowed * size)
    factor = reach / size
    for i, layer in enumerate(moving):
        yield from layer.step(factor[i], reach[i], only=only)


def _allowed(layer: Layer, like: Array) -> Array:
    """Return the largest factor of a direction that a budget allows, 0-d.

    The filter was made from a part of the rows; what it does to all of them was measured.
    """
    xp = namespace(like)
    found = layer.found
    if found is None or found.change is None or layer.limit is None:
        return xp.full_like(like, xp.inf)
    most = xp.astype(layer.limit, like.dtype)
    change = xp.astype(found.change, like.dtype)
    return most / xp.where(change > 0, change, xp.ones_like(change))
