"""What the user handed over, checked: models, parameters, and what closures return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nullport.network import Parameter, TangentUnavailable
from nullport_torch._fabric import inside
from nullport_torch._sharded import is_spread, local


class ClosureChanged(ValueError):  # noqa: N818
    """The closure is not a function of the weights alone."""

    def __init__(self, how: str) -> None:
        """Say what differed and what to do."""
        super().__init__(
            f"the closure gave another pass when called again: {how}; it must be a function of "
            f"the weights alone, so fetch the batch outside of it"
        )


class PassChanged(ClosureChanged, TangentUnavailable):
    """A forward pass at slightly moved weights went another way, such as other experts."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside distributed and compiled wrappers."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return unwrap(model.module)
    if (called := inside(model)) is not model:
        return unwrap(called)
    inner = getattr(model, "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 if it has none of its own."""
    part = local(tensor)
    try:
        return part.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def out_of_reach(p: Tensor) -> str:
    """Return why the numbers of a tensor are not to be read and written, or an empty string."""
    if is_spread(p) or isinstance(p, nn.parameter.UninitializedParameter):
        return ""
    if p.is_meta:
        return "on the meta device, where it has no values"
    if p.is_nested:
        return "a nested tensor"
    if p.layout != torch.strided:
        return f"its layout is {p.layout}, not a dense one"
    if p.numel() and not address(p):
        return f"a {type(p).__name__}, which holds its numbers in a form of its own"
    return ""


def sharing_memory(parameters: Sequence[Tensor]) -> set[int]:
    """Return the ``id`` of every parameter whose memory overlaps another's."""
    shared: set[int] = set()
    end, last = 0, None
    parts = [(p, local(p)) for p in parameters if _has_memory(p)]
    for p, part in sorted(parts, key=lambda pair: pair[1].data_ptr()):
        if not part.numel():  # this rank has none of it
            continue
        if last is not None and part.data_ptr() < end:
            shared |= {id(p), id(last)}
        span = sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True)) + 1
        if part.data_ptr() + span * part.element_size() > end:
            end, last = part.data_ptr() + span * part.element_size(), p
    return shared


def _has_memory(p: Tensor) -> bool:
    lazy = isinstance(p, nn.parameter.UninitializedParameter)
    return not lazy and not out_of_reach(p) and p.numel() > 0


def describe(name: str, p: Tensor, shared: bool) -> Parameter:
    """Name a parameter as the unwrapped model does, and say whether it can move."""
    name = name.replace("_orig_mod.", "")
    if isinstance(p, nn.parameter.UninitializedParameter):
        msg = f"parameter {name!r} is not initialised: run the model once before teleporting"
        raise ValueError(msg)
    if not p.dtype.is_floating_point:
        return Parameter(name, False, f"its dtype is {p.dtype}, not a real floating one")
    if not p.requires_grad:
        return Parameter(name, False, "frozen (requires_grad is False)")
    if why := out_of_reach(p):
        return Parameter(name, False, why)
    if shared:
        return Parameter(name, False, "shares its memory with another parameter")
    if not p.is_leaf:
        return Parameter(name, False, "not a leaf of the autograd graph")
    return Parameter(name)


def scalar(loss: object) -> Tensor:
    """Check that a closure returned a scalar tensor.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no scalar.
    """
    if not isinstance(loss, Tensor):
        msg = f"the closure returned {type(loss).__name__}; it must return the loss, a 0-d tensor"
        raise TypeError(msg)
    if loss.numel() != 1:
        msg = f"the closure returned shape {tuple(loss.shape)}; it must return a scalar loss"
        raise ValueError(msg)
    return loss.reshape(())


def checked_loss(value: object) -> Tensor:
    """Check the loss that the closure returned.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no scalar that depends on the parameters.
    """
    loss = scalar(value)
    if not loss.requires_grad:
        msg = "the closure returned a loss that depends on no trainable parameter"
        raise ValueError(msg)
    return loss
