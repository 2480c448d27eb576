"""Weights given by direction and length, ``w = g v / |v|`` (``weight_norm``).

A pass is made with the ratio ``r = g / |v|`` held, so that ``w = r v`` is linear in ``v``; it has
the same numbers. When ``v`` has moved, ``g`` follows: ``r`` is then what it was, and ``w`` has
moved by ``r dv``. With ``G = r dL/dw``, the gradient of ``v`` in such a pass, the gradients proper
are

    dL/dg = <G, v> / g,      dL/dv = G - v <G, v> / |v|^2,

with a scalar product per entry of the axis that is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nullport.network import Dense, Use

REASON = "the length of a weight, which follows it"


class Length(NamedTuple):
    """Indices of ``v`` and ``g``, and the axis that is kept (-1 for none)."""

    direction: int
    length: int
    dim: int


def ratio(direction: Tensor, length: Tensor, dim: int) -> Tensor:
    """Return ``g / |v|``, without a gradient."""
    return (length / torch.norm_except_dim(direction, 2, dim)).detach()


def gradients_proper(
    gradients: Dense, tensors: Sequence[Tensor], lengths: Sequence[Length]
) -> list[Tensor | None]:
    """Return gradients with those of lengths, given those of a pass in which ratios are held."""
    found = list(gradients)
    for v, g, dim in lengths:
        held = found[v]
        if held is None or gradients[g] is not None:
            continue
        direction, length = tensors[v].detach(), tensors[g].detach()
        axes = [k for k in range(direction.ndim) if k != dim]
        along = (held * direction).sum(axes, keepdim=True)
        square = direction.square().sum(axes, keepdim=True)
        found[v] = held - direction * (along / square)
        found[g] = (along.reshape(length.shape) / length).nan_to_num(0.0, 0.0, 0.0)
    return found


def elsewhere(lengths: Sequence[Length], uses: Sequence[Use]) -> list[Use]:
    """Return uses that hold weights still whose length takes part in something else."""
    calls = Counter(lengths)
    counts = Counter(use.parameter for use in uses)
    return [
        Use(own.direction, reason="weight_norm with a length that is used elsewhere")
        for own, n in calls.items()
        if counts[own.length] > n or own.length in {other.direction for other in calls}
    ]
