"""What a teleport costs, in gradients (one forward and backward) of the captured batch.

Passes are counted by their floating-point work: a gradient is three matrix products per layer, a
forward pass, a tangent pass and a weight-gradient kernel one each. Linear algebra is counted by
its operations relative to the gradient's ``6 n out d`` per layer; float64 counts twice.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nullport._capture import Block
    from nullport._graph import Linearization

FORWARD = 1 / 3
KERNEL = 1 / 3
BACKWARD = 2 / 3
GRADIENT = 1.0


def gradient_work(lin: Linearization, blocks: list[Block]) -> float:
    """Return the floating-point operations of one gradient over the given blocks."""
    return max(
        1.0,
        sum(
            6.0 * block.layout.size * lin.sites[i].samples for block in blocks for i in block.sites
        ),
    )


def null_space_work(block: Block, lin: Linearization, rows: int, *, budget: bool) -> float:
    """Return the operations of a row space, of ``rows`` rows, and of one projection.

    QR with an explicit basis: ``4 n^2 d``. Gram matrix and eigendecomposition in float64:
    ``4 n d^2 + 18 d^3``. Projection: ``4 n^2 d`` (rows) or ``4 out d^2``. Keeping to a budget
    measures the output change: a forward pass of the layer.
    """
    inputs = prod(size for size, _ in block.layout.inp) + (block.bias is not None)
    rest = block.layout.size // max(inputs - (block.bias is not None), 1)
    stack = prod(size for size, _ in block.layout.stack)
    samples = sum(lin.sites[i].samples for i in block.sites)
    measured = 2.0 * samples * block.layout.size if budget else 0.0
    if rows <= inputs:
        return 8.0 * stack * rows**2 * inputs + measured
    return stack * (4.0 * rows * inputs**2 + 18.0 * inputs**3) + 4.0 * rest * inputs**2 + measured
