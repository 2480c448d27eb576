"""What torch functions are to a watcher: which see no elements, write, or hide others inside."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

METADATA = {
    "size", "dim", "ndimension", "stride", "numel", "nelement", "storage_offset", "data_ptr",
    "element_size", "get_device", "type", "is_contiguous", "is_floating_point", "is_complex",
    "is_signed", "is_pinned", "is_inference", "is_conj", "is_neg", "is_same_size", "len", "hash",
    "dim_order", "register_hook", "retain_grad", "is_tensor", "can_cast",
}  # fmt: skip
"""Functions that return no tensor and tell nothing of the elements."""

_GLOBALS = dict(vars(F)) | {
    name: (lambda *_: False) for name in vars(F) if name.startswith("has_torch_function")
}
_REBOUND: dict[Any, Any] = {}


def see_through(function: Any) -> Any:
    """Return a copy of a composite of ``torch.nn.functional`` that does not hand itself over.

    Under a function mode such composites (multi-head attention) are opaque: they hand themselves
    over whole. Rebound to globals in which nothing is overridden, their body runs and every
    function inside is seen. The module itself is not patched, so other threads are not affected.
    """
    if function not in _REBOUND:
        rebound = types.FunctionType(
            function.__code__,
            _GLOBALS,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        rebound.__kwdefaults__ = function.__kwdefaults__
        _REBOUND[function] = rebound
    return _REBOUND[function]


def standard(func: Any) -> Any:
    """Return the function of ``torch`` that an exported program calls by its operator."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = func.__name__.split(".")[0]
        return getattr(torch, name, getattr(Tensor, name, func))
    return func


def in_turn(steps: Sequence[tuple[Any, tuple[Any, ...]]]) -> Any:
    """Run functions one after the other, each on the result of the one before."""
    (_, (result,)), *rest = steps
    for function, (*before, operand) in rest:
        result = function(*before, result, operand)
    return result


def plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is a real, dense one, and no stand-in inside ``torch.func``."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    strided = tensor.layout == torch.strided and not tensor.is_nested
    return strided and tensor.dtype.is_floating_point and not wrapped


def offset(tensor: Tensor) -> int:
    return int(tensor.storage_offset())


def composite(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and func.__module__ == F.__name__


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if func is torch.autograd.grad:
        return "a gradient that the loss takes by it"
    return "gather (embedding)" if name == "embedding" else name.strip("_")
