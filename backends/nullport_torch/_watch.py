"""What every pass is watched for: calls of ``backward``, writes to what must not change, the data.

Parameters may be written in a forward pass (``max_norm`` of an embedding, clamps, averages in a
twin). A tensor is copied just before it is written, and written back after the pass; what is never
written costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nullport_torch._checks import out_of_reach
from nullport_torch._sharded import local

_WRITERS = {"__setitem__", "__set__"} | {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
_MAX_NORM = {F.embedding: 3, F.embedding_bag: 4}
"""Functions that write to their weight if they are given a ``max_norm``, at this position."""

_LOOKED_AT, _TELLING = 512, 16
"""Elements of a tensor, and tensors, that tell whether two passes saw the same data."""


class BackwardCalled(RuntimeError):  # noqa: N818
    """The closure called ``backward``."""

    def __init__(self) -> None:
        """Say what the closure must do instead."""
        super().__init__(
            "the closure called backward(); it must only return the loss: nullport takes the "
            "gradient itself"
        )


class Watch:
    """Copies tensors before they are written, and writes them back."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Watch over tensors: parameters, and whatever else passes may write to."""
        self._by_memory: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            for memory in _memory(tensor):
                self._by_memory.setdefault(memory, []).append(local(tensor))
        self._saved: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def written(self) -> bool:
        """Whether something was written since it was last put back."""
        return bool(self._saved)

    def before(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Note a call before it is made.

        Raises:
            BackwardCalled: If it is ``backward``.
        """
        if func is Tensor.backward or func is torch.autograd.backward:
            raise BackwardCalled
        if not writes(func, args, kwargs):
            return
        for value in tensors_in((args, kwargs)):
            for memory in _memory(value):
                for tensor in self._by_memory.get(memory, ()):
                    if id(tensor) not in self._saved:
                        alias = tensor.data
                        self._saved[id(tensor)] = (tensor, alias, alias.clone())

    def put_back(self) -> None:
        """Write back what was written; may be called again."""
        for tensor, alias, copy in self._saved.values():
            if tensor.data_ptr() != alias.data_ptr():
                tensor.data = alias
            alias.copy_(copy)
        self._saved.clear()


class NoBackward(TorchFunctionMode):
    """Watches a pass that is not recorded, and keeps what tells its data from another's."""

    def __init__(self, watch: Watch, data: list[Any] | None = None) -> None:
        """Report calls to ``watch``, and what data meets the weights to ``data``."""
        super().__init__()
        self._watch, self._data = watch, data

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._watch.before(func, args, kwargs)
        if self._data is not None:
            add_data(self._data, args, kwargs)
        return func(*args, **kwargs)


def add_data(data: list[Any], args: Any, kwargs: Any) -> None:
    """Add what tells the data of a call to ``data``, if it brings data and weights together."""
    if len(data) >= _TELLING:
        return
    found = list(tensors_in((args, kwargs)))
    if len(found) > 1 and any(t.requires_grad for t in found):
        data += [_told(t) for t in found if not t.requires_grad and plain(t)]


def plain(t: Tensor) -> bool:
    """Tell whether a tensor is an ordinary one, with elements that can be looked at."""
    if t.layout != torch.strided or t.is_nested or t.is_meta:
        return False
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(t)
    return not wrapped and type(t) in (Tensor, torch.nn.Parameter)


def _told(t: Tensor) -> tuple[Any, ...]:
    few = t.detach().reshape(-1)[:_LOOKED_AT]
    return tuple(t.shape), float(t.detach().double().sum()), hash(tuple(few.tolist()))


def writes(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a function writes to one of its arguments."""
    name = getattr(func, "__name__", "")
    if name in _WRITERS or (name.endswith("_") and not name.endswith("__")):
        return True
    if func in _MAX_NORM:
        place = _MAX_NORM[func]
        return (args[place] if len(args) > place else kwargs.get("max_norm")) is not None
    return kwargs.get("out") is not None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def _memory(tensor: Tensor) -> list[int]:
    """Return the address of a tensor's memory, if it has any of its own."""
    if isinstance(tensor, torch.nn.UninitializedParameter) or out_of_reach(tensor):
        return []
    try:
        return [local(tensor).untyped_storage().data_ptr()]
    except (RuntimeError, NotImplementedError):  # sparse tensors, wrappers
        return []
