"""Modules of Fabric, which refuse a gradient that is not taken by ``Fabric.backward``.

Under mixed precision each output has a hook that raises. A teleport takes gradients itself, so for
its time outputs get no hook.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

_HOMES = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")


def checking(model: nn.Module) -> list[nn.Module]:
    """Return Fabric's wrappers of a model's parameters; nothing in the model tells of them."""
    if not (known := _kinds()):
        return []
    own = {id(p) for p in model.parameters()}
    found: list[Any] = [o for o in gc.get_objects() if issubclass(type(o), known)]
    return [w for w in found if any(id(p) in own for p in w.parameters())]


def inside(model: nn.Module) -> nn.Module:
    """Return the module that a wrapper of Fabric calls, or the module itself."""
    if not isinstance(model, _kinds()):
        return model
    inner: nn.Module = vars(model)["_modules"]["_forward_module"]
    return inner


def _kinds() -> tuple[type, ...]:
    kinds = [getattr(sys.modules.get(home), "_FabricModule", None) for home in _HOMES]
    return tuple(kind for kind in kinds if kind is not None)


@contextlib.contextmanager
def unchecked(wrappers: Sequence[nn.Module]) -> Iterator[None]:
    """Let gradients be taken in any way."""
    try:
        for wrapper in wrappers:
            vars(wrapper)["_register_backward_hook"] = _as_it_is
        yield
    finally:
        for wrapper in wrappers:
            vars(wrapper).pop("_register_backward_hook", None)


def _as_it_is(tensor: Any) -> Any:
    return tensor
