"""``ZeroRedundancyOptimizer``: every rank holds the state of some parameters, and steps those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nullport.network import Collective
from nullport_torch._optimizer import step_of_copy
from nullport_torch._sharded import is_a


def step_over_ranks(
    optimizer: Optimizer,
    tensors: Sequence[Tensor],
    gradients: Mapping[int, Tensor | None],
    together: Collective,
) -> list[Tensor | None]:
    """Return what an optimizer would subtract from each parameter, whichever rank steps it.

    Args:
        optimizer: Any optimizer.
        tensors: The parameters of the model.
        gradients: The gradient of each, by ``id``.
        together: Adds over the ranks.

    Raises:
        ValueError: If the optimizer steps in the backward pass.
    """
    if not is_a(optimizer, "torch.distributed.optim", "ZeroRedundancyOptimizer"):
        moved = step_of_copy(optimizer, gradients)
        return [moved.get(id(p)) for p in tensors]
    moved = step_of_copy(_own_part(optimizer), gradients)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found: list[Tensor | None] = []
    for p in tensors:
        if id(p) not in known or gradients.get(id(p)) is None:
            found.append(None)
            continue
        mine = moved.get(id(p))
        found.append(together.sum(torch.zeros_like(p) if mine is None else mine))
    return found


def _own_part(optimizer: Any) -> Optimizer:
    """Return the optimizer of this rank's parameters, with the present settings."""
    if optimizer._overlap_with_ddp:
        msg = (
            "a ZeroRedundancyOptimizer that steps within the backward pass cannot be asked for its "
            "next step; allowed: overlap_with_ddp=False"
        )
        raise ValueError(msg)
    inner: Optimizer = optimizer.optim
    for own, given in zip(inner.param_groups, optimizer.param_groups, strict=True):
        own.update({key: value for key, value in given.items() if key != "params"})
    return inner
