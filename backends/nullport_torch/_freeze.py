"""Keeping a closure for later, with the batch it has now; and for a resumed run.

A closure in a training loop, ``lambda: loss_fn(model(x), y)``, looks its batch up when it is
called; one step later it would see the next batch. A frozen copy is bound to what the names mean
now: its own, those of the functions it calls, and the attributes of the objects that it names.
Tensors are not copied: a batch that is overwritten in place is not kept.

Code cannot be saved in a checkpoint, but the data it was bound to can: in the resumed run the
closure of the first step is bound to it anew.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from nullport_torch._batches import is_data
from nullport_torch._reads import GENERATORS, bindings, foreign, names_of, of_library

T = TypeVar("T")


def freeze(closure: Callable[[], T]) -> Callable[[], T]:
    """Return a copy of ``closure`` bound to the present values of the names it uses.

    >>> __name__, x = "a user's", 1  # functions of this library stay as they are
    >>> now = freeze(lambda: x)
    >>> x = 2
    >>> now()
    1
    """
    return bind(closure, {})


def bind(closure: Callable[[], T], data: Mapping[str, Any]) -> Callable[[], T]:
    """Return a copy of ``closure`` with some of its names bound to ``data``, the others as now.

    >>> __name__, x = "a user's", 1
    >>> bind(lambda: x, {"x": 2})()
    2
    """
    found: Callable[[], T] = _Freezer(data)(closure)
    return found


class _Freezer:
    """Makes copies, each object once, so that what was shared is shared again."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._made: dict[int, Any] = {}
        self._seen: list[object] = []  # kept alive, so that no id is used again

    def __call__(self, value: Any) -> Any:
        """Return a copy of a closure, or what it calls, bound to what its names mean now."""
        if id(value) in self._made:
            return self._made[id(value)]
        self._seen.append(value)
        self._made[id(value)] = value
        if isinstance(value, FunctionType) and not of_library(value):
            self._function(value, data=self._data if len(self._made) == 1 else {})
        elif isinstance(value, MethodType):
            self._made[id(value)] = MethodType(self(value.__func__), self(value.__self__))
        elif isinstance(value, partial):
            given = self._data.get("args", {})
            arguments = [given.get(i, argument) for i, argument in enumerate(value.args)]
            words = {**value.keywords, **self._data.get("keywords", {})}
            self._made[id(value)] = partial(self(value.func), *arguments, **words)
        elif _holds(value):
            self._object(value)
        return self._made[id(value)]

    def _function(self, function: FunctionType, data: Mapping[str, Any]) -> None:
        home, code = function.__globals__, function.__code__
        space = {
            "__builtins__": home.get("__builtins__", builtins),
            "__name__": home.get("__name__", ""),
        }
        cells = tuple(CellType() for _ in code.co_freevars)
        copy = FunctionType(code, space, function.__name__, function.__defaults__, cells)
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        self._made[id(function)] = copy

        def now(name: str, value: object) -> Any:
            return data[name] if name in data else self(value)

        for name in names_of(code) & {*home}:
            space[name] = now(name, home[name])
        for name, mine, cell in zip(
            code.co_freevars, cells, function.__closure__ or (), strict=True
        ):
            with contextlib.suppress(ValueError):  # not assigned yet
                mine.cell_contents = now(name, cell.cell_contents)
        if function.__defaults__:
            names = code.co_varnames[: code.co_argcount][-len(function.__defaults__) :]
            pairs = zip(names, function.__defaults__, strict=True)
            copy.__defaults__ = tuple(data.get(name, value) for name, value in pairs)

    def _object(self, value: Any) -> None:
        """Copy an object of the user's own class, without what its attributes refer to."""
        try:
            copy = object.__new__(type(value))
            vars(copy).update(vars(value))
        except Exception:
            return
        self._made[id(value)] = copy
        for name, held in list(vars(copy).items()):
            if isinstance(held, FunctionType | MethodType | partial) or _holds(held):
                vars(copy)[name] = self(held)


def _holds(value: object) -> bool:
    """Tell whether a value is an object of the user's own that may hold a batch."""
    if isinstance(value, (nn.Module, Optimizer, Tensor, type, *GENERATORS)):
        return False
    return hasattr(value, "__dict__") and not foreign(type(value).__module__)


def data_of(closure: Callable[[], T]) -> dict[str, Any] | None:
    """Return the data that a frozen closure is bound to, by name; None if it is no function.

    Arrays, numbers, strings, containers and records of them are data. Networks and functions are
    not, nor are arrays that are trained: a resumed run has its own.
    """
    if isinstance(closure, partial):
        arguments = {i: value for i, value in enumerate(closure.args) if is_data(value)}
        words = {name: value for name, value in closure.keywords.items() if is_data(value)}
        return {"args": arguments, "keywords": words}
    if isinstance(closure, FunctionType):
        return {name: v for name, v in bindings(closure).items() if is_data(v)}
    return None
