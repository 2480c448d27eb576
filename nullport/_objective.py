"""What a teleport improves: a function phi of the gradient g, through v = dphi/dg.

The projected gradient of phi over the weights of a layer needs only ``v`` (see
:mod:`nullport._direction`), so an objective is a function from ``g`` to ``v``, each one array per
parameter (None where the loss does not depend on the parameter).
"""

from __future__ import annotations

from collections.abc import Sequence

from nullport._arrays import Array, elements
from nullport._config import Objective, TeleportConfig

Vector = Sequence[Array | None]


def grad_norm(gradients: Vector) -> Vector:
    """Return ``v = g`` for ``phi = ||g||^2 / 2``, the objective of Wu et al. (2025).

    >>> grad_norm([1.0, 2.0])
    [1.0, 2.0]
    """
    return gradients


def resolve(config: TeleportConfig) -> Objective:
    """Return the function from gradients to ``v`` that the configuration names."""
    return config.objective if callable(config.objective) else grad_norm


def check(v: Vector, gradients: Vector) -> None:
    """Check that a custom objective returned arrays of the gradient's structure.

    Raises:
        ValueError: If the number of arrays or a shape differs.
    """
    if len(v) != len(gradients):
        msg = f"the objective returned {len(v)} arrays for {len(gradients)} parameters"
        raise ValueError(msg)
    for index, (mine, theirs) in enumerate(zip(v, gradients, strict=True)):
        if mine is None or theirs is None:
            continue
        if elements(mine) != elements(theirs) or mine.shape != theirs.shape:
            msg = (
                f"the objective returned shape {tuple(mine.shape)} for parameter {index} "
                f"of shape {tuple(theirs.shape)}"
            )
            raise ValueError(msg)
