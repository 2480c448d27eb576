"""Meshes with explicit axes, the default of ``jax.make_mesh`` from JAX 0.9 on.

There every array's type says how it is spread, and every operation must say how its result is. A
factorisation of rows that are spread cannot; so a teleport is made with the axes left to the
compiler, as on any other mesh, and its results are spread as what they replace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from nullport_jax._tree import Arrays

S = TypeVar("S")
T = TypeVar("T")


def explicit_axes() -> tuple[str, ...]:
    """Return the axes of the present mesh that are explicit."""
    of = getattr(jax.sharding, "get_abstract_mesh", None)
    kinds = getattr(jax.sharding, "AxisType", None)
    if of is None or kinds is None or not hasattr(jax.sharding, "auto_axes"):
        return ()  # an older JAX, which has no such axes
    mesh = of()
    pairs = zip(mesh.axis_names or (), mesh.axis_types or (), strict=True)
    return tuple(name for name, kind in pairs if kind == kinds.Explicit)


def automatic(function: Callable[..., tuple[T, S]], args: tuple[Any, ...], like: T) -> tuple[T, S]:
    """Return ``function(*args)``, made with no explicit axis.

    Args:
        function: Returns two pytrees; all leaves of the second are arrays.
        args: Pytrees; what is no array in them is passed as it is.
        like: A pytree of the structure of the first result, whose arrays are spread as its shall
            be. The second is whole on every device.
    """
    axes = explicit_axes()
    if not axes:
        return function(*args)
    given, kept = Arrays(args), Arrays(like)

    def call(*arrays: Any) -> Any:
        found, rest = function(*given.tree(arrays))
        return kept.leaves(found), rest

    specs = [jax.typeof(a).sharding.spec for a in kept.arrays]
    whole: Any = PartitionSpec
    made = jax.sharding.auto_axes(call, axes=axes, out_sharding=(specs, whole()))
    found, rest = made(*given.arrays)
    result: T = kept.tree(found)
    return result, rest
