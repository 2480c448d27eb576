"""Copies of the weights that an optimizer keeps: they move along with the weights.

Master weights in a wider dtype, the slow weights of a look-ahead optimizer, the ``z`` of a
schedule-free one: a step computed from a copy that stayed behind would undo a move. A copy is known
by where it is kept (the same place for every parameter) and by being near the weights, which
averages of gradients are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from nullport_torch._checks import address
from nullport_torch._sharded import is_spread, local

NEAR = 0.5
"""Relative distance within which a tensor is taken for a copy of a weight."""

LARGE, SAMPLE = 16, 4096
"""Elements that a weight must have for its distance to tell anything, and that are looked at."""


def copies_of(
    parameters: Sequence[Tensor], groups: Iterable[Sequence[Tensor]], containers: Iterable[Any]
) -> dict[int, list[Tensor]]:
    """Return the copies of each parameter, by its ``id``.

    Args:
        parameters: All parameters.
        groups: The parameters of each group, in order.
        containers: Every list, tuple and dictionary that the optimizers hold.
    """
    rows = [list(group) for group in groups]
    rows += [list(parameters)]
    found: dict[int, list[Tensor]] = {}
    known = {id(p) for p in parameters}
    for family in _families(known, rows, containers):
        if not _near(family):
            continue
        for p, copy in family:
            mine = found.setdefault(id(p), [])
            if all(copy is not other for other in mine):
                mine.append(copy)
    return found


Family = list[tuple[Tensor, Tensor]]


def _families(
    known: set[int], rows: Sequence[Sequence[Tensor]], containers: Iterable[Any]
) -> Iterator[Family]:
    """Yield pairs of parameters and tensors that are kept in the same place for each."""
    for value in containers:
        if isinstance(value, Mapping):
            yield from _by_parameter(known, value)
        elif isinstance(value, list | tuple):
            for row in rows:
                if len(row) == len(value) and all(map(_fits, row, value)):
                    yield list(zip(row, value, strict=True))


def _by_parameter(known: set[int], value: Mapping[Any, Any]) -> Iterator[Family]:
    """Yield the families of a dictionary from parameters to tensors, or to states by name."""
    keyed = [(p, held) for p, held in list(value.items()) if id(p) in known]
    direct = [(p, held) for p, held in keyed if _fits(p, held)]
    if direct:
        yield direct
    families: dict[object, Family] = {}
    for p, held in keyed:
        for place, copy in _places(held):
            if _fits(p, copy):
                families.setdefault(place, []).append((p, copy))
    yield from families.values()


def _places(held: object, place: tuple[object, ...] = ()) -> Iterator[tuple[object, Any]]:
    """Yield the tensors in the state of a parameter, each with its place in it."""
    if isinstance(held, Tensor):
        yield place, held
    elif isinstance(held, Mapping) and len(place) < 4:
        for name, item in held.items():
            yield from _places(item, (*place, name))


def _fits(p: Tensor, copy: object) -> bool:
    return (
        isinstance(copy, Tensor)
        and copy is not p
        and copy.shape == p.shape
        and copy.dtype.is_floating_point
        and copy.device == p.device
        and is_spread(copy) == is_spread(p)
        and address(copy) != address(p)
    )


def _near(family: Family) -> bool:
    parts = [(local(p), local(copy)) for p, copy in family]
    told = [(_some(p), _some(copy)) for p, copy in parts if p.numel() >= LARGE]
    telling = [(p, copy) for p, copy in told if p.shape == copy.shape and p.norm() > 0]
    return bool(telling) and all((copy - p).norm() <= NEAR * p.norm() for p, copy in telling)


def _some(tensor: Tensor) -> Tensor:
    """Return some elements, in float64."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].double()
