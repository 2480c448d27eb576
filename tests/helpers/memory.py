"""How many bytes of tensors are alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Follows the memory of all tensors that are made while it is on.

    Attributes:
        bytes: The most that were alive after any operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts come by next
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and not isinstance(value, DTensor):
                storage = value.untyped_storage()
                self._held.setdefault(storage._cdata, weakref.ref(storage))
        alive = 0
        for key, ref in [*self._held.items()]:
            storage = ref()
            if storage is None:
                del self._held[key]
            else:
                alive += storage.nbytes()
        self.bytes = max(self.bytes, alive)
        return out
