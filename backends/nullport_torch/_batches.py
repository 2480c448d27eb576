"""Batches of any type: as part of a step, in a checkpoint, and out of one again.

A checkpoint holds plain containers, numbers, strings and tensors only, so that it loads with
``weights_only=True``. A batch of another type (named tuple, dataclass, ``UserDict``, the output of
a tokenizer, a graph) is saved as its parts, and made again from a batch of the same type in the
resumed run: no class is ever looked up by a name in a file.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KIND = "nullport"
"""Key under which the kind of a record is saved."""

_PLAIN = (bool, int, float, str, bytes)


class Unsaved(TypeError):  # noqa: N818
    """A batch is of a type that is not saved, or not the type of what was saved."""


class Step:
    """A loss function and the batch that it is called on: a closure that keeps its batch."""

    def __init__(self, loss_fn: Callable[[Any], Any], batch: Any) -> None:
        """Join them."""
        self.loss_fn, self.batch = loss_fn, batch

    def __call__(self) -> Any:
        """Return the loss."""
        return self.loss_fn(self.batch)


def is_data(value: Any) -> bool:
    """Tell whether a value is data that can be saved."""
    if value is None:
        return True
    try:
        encoded(value)
    except Unsaved:
        return False
    return True


def encoded(value: Any) -> Any:
    """Return a batch as plain containers of tensors, numbers and strings.

    Raises:
        Unsaved: If there is something else in it.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        if value.requires_grad:
            msg = "a tensor in a batch that is trained"
            raise Unsaved(msg)
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return {KIND: "array", "parts": torch.as_tensor(np.array(value))}
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {KIND: kind, "parts": [encoded(item) for item in value]}
    if type(value) is dict:
        pairs = [[encoded(key), encoded(item)] for key, item in value.items()]
        return {KIND: "dict", "parts": pairs}
    parts = _parts(value)
    if parts is None:
        msg = f"a {type(value).__name__} in a batch"
        raise Unsaved(msg)
    return {KIND: _name(value), "parts": encoded(parts)}


def decoded(saved: Any, like: Any) -> Any:
    """Return a batch from what :func:`encoded` made of it.

    Args:
        saved: What was saved.
        like: A batch of the present run, for types that have to be known.

    Raises:
        Unsaved: If a batch was of a type that ``like`` is not.
    """
    if not isinstance(saved, dict):
        return saved
    kind, parts = saved[KIND], saved["parts"]
    if kind == "array":
        return parts.numpy()
    if kind in ("list", "tuple"):
        given = like if isinstance(like, list | tuple) else ()
        likes = [given[i] if i < len(given) else None for i in range(len(parts))]
        made = [decoded(part, other) for part, other in zip(parts, likes, strict=True)]
        return made if kind == "list" else tuple(made)
    if kind == "dict":
        others = like if isinstance(like, Mapping) else {}
        pairs = ((decoded(key, None), part) for key, part in parts)
        return {key: decoded(part, others.get(key)) for key, part in pairs}
    if like is None or kind != _name(like):
        msg = f"a {kind}, where this run has a {type(like).__name__}"
        raise Unsaved(msg)
    return _made(like, decoded(parts, _parts(like)))


def check(saved: Any) -> None:
    """Raise if something is not what :func:`encoded` returns.

    Raises:
        TypeError: If it is not.
    """
    if saved is None or type(saved) in _PLAIN or isinstance(saved, Tensor):
        return
    if not isinstance(saved, dict) or set(saved) != {KIND, "parts"}:
        msg = f"invalid batch: {type(saved).__name__}; allowed: what state_dict() has returned"
        raise TypeError(msg)
    parts = saved["parts"]
    for part in parts if isinstance(parts, list) else [parts]:
        for item in part if isinstance(part, list) else [part]:
            check(item)


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _parts(value: Any) -> Any:
    """Return what makes up a record, or None if its type is not known."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(value)
    if isinstance(value, UserDict):
        return value.data
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if callable(getattr(value, "to_dict", None)) and callable(
        getattr(type(value), "from_dict", None)
    ):
        return dict(value.to_dict())
    if isinstance(value, dict):  # a subclass, such as an OrderedDict
        return dict(value)
    return None


def _made(like: Any, parts: Any) -> Any:
    """Return a record of the type of ``like``, of other parts."""
    made: Any
    if isinstance(like, tuple):
        return type(like)(*parts)
    if isinstance(like, UserDict):
        made = copy.copy(like)
        made.data = parts
        return made
    if dataclasses.is_dataclass(like):
        made = copy.copy(like)
        for name, value in parts.items():
            object.__setattr__(made, name, value)
        return made
    if hasattr(type(like), "from_dict"):
        return type(like).from_dict(parts)
    made = copy.copy(like)
    made.clear()
    made.update(parts)
    return made
