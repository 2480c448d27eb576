"""The user's optimizer, asked for its next step without taking it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from nullport_torch._sharded import copies as sharded_copies


def step_of_copy(
    optimizer: Optimizer, gradients: Mapping[int, Tensor | None]
) -> dict[int, Tensor | None]:
    """Return what ``optimizer`` would subtract from each parameter, given gradients.

    The rule is never re-derived: a copy of the optimizer, state and parameters included, takes the
    step. Hooks and schedulers are not copied, so they do not notice.

    Args:
        optimizer: Any optimizer whose ``step`` needs no closure.
        gradients: The gradient of each parameter, by ``id``; parameters that are missing or None
            are left out of the step.

    Returns:
        The difference old - new of each parameter, by ``id`` of the original.

    Raises:
        ValueError: If the optimizer's step needs a closure.
    """
    originals = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.grad for p in originals]
    try:
        for p in originals:
            p.grad = None  # a gradient would be copied too
        clone = copy.deepcopy(optimizer, sharded_copies(optimizer))
    finally:
        for p, grad in zip(originals, kept, strict=True):
            p.grad = grad
    copies = [p for group in clone.param_groups for p in group["params"]]
    for p, twin in zip(originals, copies, strict=True):
        gradient = gradients.get(id(p))
        twin.grad = None if gradient is None else gradient.detach().to(twin.dtype).clone()
    try:
        with torch.enable_grad():
            type(clone).step(clone)
    except TypeError as error:
        msg = f"{type(optimizer).__name__} cannot step without a closure: {error}"
        raise ValueError(msg) from error
    return {
        id(p): None if twin.grad is None else p.detach() - twin.detach()
        for p, twin in zip(originals, copies, strict=True)
    }
