"""``ZeroRedundancyOptimizer``: every rank holds the state of some parameters, and steps those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nullport.network import Collective
from nullport_torch._sharded import is_a


def is_divided(optimizer: Any) -> bool:
    """Tell whether every rank steps parameters of its own."""
    return is_a(optimizer, "torch.distributed.optim", "ZeroRedundancyOptimizer")


def own_part(optimizer: Any) -> Any:
    """Return the optimizer of this rank's parameters, with the present settings.

    Raises:
        ValueError: If it steps in the backward pass.
    """
    if not is_divided(optimizer):
        return optimizer
    if optimizer._overlap_with_ddp:
        msg = (
            "a ZeroRedundancyOptimizer that steps within the backward pass cannot be asked for its "
            "next step; allowed: overlap_with_ddp=False"
        )
        raise ValueError(msg)
    inner: Any = optimizer.optim
    for own, given in zip(inner.param_groups, optimizer.param_groups, strict=True):
        own.update({key: value for key, value in given.items() if key != "params"})
    return inner


def joined(
    optimizers: Iterable[Any],
    moved: Mapping[int, Tensor | None],
    gradients: Mapping[int, Tensor | None],
    together: Collective,
) -> dict[int, Tensor | None]:
    """Return the step of each parameter, whichever rank has made it.

    Args:
        optimizers: The optimizers.
        moved: What they subtract here, by the ``id`` of a parameter.
        gradients: The gradient of each, likewise.
        together: Adds over the ranks.
    """
    found = dict(moved)
    for optimizer in filter(is_divided, optimizers):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            mine = found.get(id(p))
            if gradients.get(id(p)) is None:
                found[id(p)] = None
            else:
                found[id(p)] = together.sum(torch.zeros_like(p) if mine is None else mine)
    return found
