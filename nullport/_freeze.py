"""Keeping a closure for later, with the batch it has now.

A closure in a training loop, ``lambda: loss_fn(model(x), y)``, looks its batch up when it is
called; one step later it would see the next batch. A frozen copy is bound to what the names mean
now. Tensors are not copied: a batch that is overwritten in place is not kept.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import partial
from types import CellType, CodeType, FunctionType
from typing import TypeVar

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
    if not isinstance(closure, FunctionType):
        return closure
    used = {name: closure.__globals__[name] for name in _names(closure) & {*closure.__globals__}}
    frozen = FunctionType(
        closure.__code__,
        {"__builtins__": closure.__globals__.get("__builtins__", builtins), **used},
        closure.__name__,
        closure.__defaults__,
        tuple(map(_copy, closure.__closure__ or ())),
    )
    frozen.__kwdefaults__ = closure.__kwdefaults__
    return frozen


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
