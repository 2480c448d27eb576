"""Leaving somebody else's objects as they were: arrays, attributes and random states.

Layers written by hand keep inputs, masks and gradients in attributes, some written in place. A pass
made through them has to be as if it had not been.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from nullport.network import Array, namespace


@contextlib.contextmanager
def untouched(objects: Sequence[Any]) -> Iterator[None]:
    """Undo, on leaving, whatever happens inside to objects and to NumPy's random state.

    Followed are attributes, lists, tuples and mappings of them, and objects in them that have a
    ``forward`` themselves.
    """
    undo: list[Callable[[], None]] = []
    seen: dict[int, Any] = {}
    for thing in objects:
        _remember(thing, undo, seen, top=True)
    state = np.random.get_state()  # noqa: NPY002 - layers written by hand draw from it
    try:
        yield
    finally:
        for step in undo:
            step()
        np.random.set_state(state)  # noqa: NPY002


def _remember(
    thing: Any, undo: list[Callable[[], None]], seen: dict[int, Any], *, top: bool
) -> None:
    """Note how to undo changes of ``thing`` and of what it holds."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # kept alive, so that no other object takes its id
    if is_array_api_obj(thing):
        if writable(thing):
            undo.append(_rewrite(thing))
    elif isinstance(thing, np.random.Generator):
        state = thing.bit_generator.state
        undo.append(lambda: setattr(thing.bit_generator, "state", state))
    elif isinstance(thing, np.random.RandomState):
        old = thing.get_state()
        undo.append(lambda: thing.set_state(old))
    elif isinstance(thing, list | tuple | dict):
        _remember_container(thing, undo, seen)
    elif (top or callable(getattr(thing, "forward", None))) and hasattr(thing, "__dict__"):
        _remember_container(vars(thing), undo, seen)


def _remember_container(thing: Any, undo: list[Callable[[], None]], seen: dict[int, Any]) -> None:
    items = list(thing.values()) if isinstance(thing, dict) else list(thing)
    if isinstance(thing, dict):
        undo.append(_refill(thing))
    elif isinstance(thing, list):
        undo.append(lambda: thing.__setitem__(slice(None), items))
    for item in items:
        _remember(item, undo, seen, top=False)


def _refill(thing: dict[Any, Any]) -> Callable[[], None]:
    before = dict(thing)

    def refill() -> None:
        thing.clear()
        thing.update(before)

    return refill


def writable(array: Array) -> bool:
    """Tell whether an array can be written into."""
    flags = getattr(array, "flags", None)
    if flags is not None and hasattr(flags, "writeable"):
        return bool(flags.writeable)
    return hasattr(array, "__setitem__") and not type(array).__module__.startswith("jax")


def copied(array: Array | None) -> Any:
    """Return a copy of an array, None for None."""
    return None if array is None else namespace(array).asarray(array, copy=True)


def _rewrite(array: Array) -> Callable[[], None]:
    before = copied(array)
    return lambda: write(array, before)


def write(array: Array, values: Array) -> None:
    """Write values into an array, in place."""
    array[...] = values
