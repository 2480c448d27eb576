"""Keeping a closure for later, with the batch it has now; and for a resumed run.

A closure in a training loop, ``lambda: loss_fn(model(x), y)``, looks its batch up when it is
called; one step later it would see the next batch. A frozen copy is bound to what the names mean
now. Tensors are not copied: a batch that is overwritten in place is not kept.

Code cannot be saved in a checkpoint, but the data it was bound to can: in the resumed run the
closure of the first step is bound to it anew.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType
from typing import Any, TypeVar

T = TypeVar("T")


def freeze(closure: Callable[[], T]) -> Callable[[], T]:
    """Return a copy of ``closure`` bound to the present values of the names it uses.

    Anything but a plain function is returned as it is.

    >>> x = 1
    >>> now = freeze(lambda: x)
    >>> x = 2
    >>> now()
    1
    """
    return bind(closure, {})


def bind(closure: Callable[[], T], data: Mapping[str, Any]) -> Callable[[], T]:
    """Return a copy of ``closure`` with some of its names bound to ``data``, the others as now.

    >>> x = 1
    >>> bind(lambda: x, {"x": 2})()
    2
    """
    if not isinstance(closure, FunctionType):
        return closure
    code = closure.__code__
    used = {name: closure.__globals__[name] for name in _names(closure) & {*closure.__globals__}}
    used |= {name: data[name] for name in used if name in data}
    cells = zip(code.co_freevars, closure.__closure__ or (), strict=True)
    frozen = FunctionType(
        code,
        {"__builtins__": closure.__globals__.get("__builtins__", builtins), **used},
        closure.__name__,
        closure.__defaults__ and tuple(_defaults(closure, data)),
        tuple(CellType(data[name]) if name in data else _copy(cell) for name, cell in cells),
    )
    frozen.__kwdefaults__ = closure.__kwdefaults__
    return frozen


def data_of(closure: Callable[[], T]) -> dict[str, Any] | None:
    """Return the data that a frozen closure is bound to, by name; None if it is no function.

    Arrays, numbers, strings and containers of them are data. Networks and functions are not, nor
    are arrays that are trained: a resumed run has its own.
    """
    if not isinstance(closure, FunctionType):
        return None
    code = closure.__code__
    named = {name: closure.__globals__[name] for name in _names(closure) & {*closure.__globals__}}
    for name, cell in zip(code.co_freevars, closure.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            named[name] = cell.cell_contents
    arguments = code.co_varnames[: code.co_argcount]
    given = closure.__defaults__ or ()
    named |= dict(zip(arguments[len(arguments) - len(given) :], given, strict=True))
    return {name: value for name, value in named.items() if _is_data(value)}


def _is_data(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return not getattr(value, "requires_grad", False)
    return value is None or isinstance(value, bool | int | float | str | bytes)


def _defaults(closure: FunctionType, data: Mapping[str, Any]) -> list[Any]:
    """Return the values of default arguments, as in ``lambda x=x: ...``, from ``data`` if there."""
    given = closure.__defaults__ or ()
    names = closure.__code__.co_varnames[: closure.__code__.co_argcount][-len(given) :]
    return [data.get(name, value) for name, value in zip(names, given, strict=True)]


def keeps_its_batch(closure: Callable[[], T]) -> bool:
    """Tell whether a frozen copy would still see the present batch later."""
    return isinstance(closure, FunctionType | partial)


def _names(function: FunctionType) -> set[str]:
    """Return the global names that a function and the functions inside it mention."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names


def _copy(cell: CellType) -> CellType:
    try:
        return CellType(cell.cell_contents)
    except ValueError:  # not assigned yet
        return CellType()
