"""A named axis of ``pmap`` or ``shard_map`` as the core's collective.

All replicas run one program, each with samples of its own. The gradient that is taken inside is
that of the sum of all replicas' losses by *one* replica's weights; so its mean over the axis is the
gradient of the mean loss, whether or not the loss itself averages over the axis.

With types that say along which axes a value varies (``check_vma`` of ``shard_map``), a gradient by
weights that do not vary would be summed on its way: everything is made to vary at the entry, and
what came in without comes out without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from nullport.network import Collective

T = TypeVar("T")
Name: TypeAlias = "str | tuple[str, ...]"

_NAMED = ("axes", "axis_name", "axis")
"""Parameters of primitives that hold the names of axes."""

_BINDERS = ("shard_map", "xla_pmap", "pmap")
"""Primitives that bind axes for what is inside of them."""

_HARMLESS = ("pvary", "pcast", "pbroadcast", "axis_index")
"""Primitives that name an axis and exchange nothing."""


class Axis(Collective):
    """Replicas along a named axis.

    Attributes:
        size: Number of replicas.
    """

    def __init__(self, name: Name) -> None:
        """Take the name of an axis, or several.

        Raises:
            ValueError: If this is no place where the axis is known.
        """
        self._name = name
        try:
            self.size = int(jax.lax.psum(1, name))  # type: ignore[no-untyped-call]
        except NameError as error:
            msg = f"axis_name={name!r}: this is not inside a pmap or shard_map over that axis"
            raise ValueError(msg) from error

    def sum(self, x: Any) -> Any:
        """Return the sum over replicas of an array, or of a Python number."""
        if isinstance(x, int | float):
            return x * self.size
        return self.vary(jax.lax.psum(x, self._name))  # type: ignore[no-untyped-call]

    def rows(self, x: jax.Array) -> jax.Array:
        """Return the rows of all replicas, (..., size n, d), for ``x`` (..., n, d)."""
        found: jax.Array = jax.lax.all_gather(x, self._name, axis=x.ndim - 2, tiled=True)
        return self.vary(found)

    def agree(self, flag: jax.Array) -> jax.Array:
        """Return whether a 0-d bool is true on any replica."""
        found: jax.Array = self.sum(jnp.asarray(flag, jnp.int32)) > 0
        return found

    def apart(self, weights: Sequence[jax.Array]) -> jax.Array:
        """Return whether the bits of any two replicas' weights differ, 0-d bool."""
        every = self.rows(jnp.stack([jnp.sum(_bits(w)) for w in weights])[None, :])
        return jnp.any(every != every[:1, :])

    def vary(self, tree: T) -> T:
        """Return a pytree whose arrays vary along the axis, as far as types tell."""
        found: T = jax.tree.map(self._varying, tree)
        return found

    def same(self, tree: T, like: Any) -> T:
        """Return a pytree whose arrays do not vary where those of ``like`` do not.

        They are those of the first replica, to the bit.
        """
        found: T = jax.tree.map(lambda x, y: self.first(x) if self._free(y) else x, tree, like)
        return found

    def first(self, x: jax.Array) -> jax.Array:
        """Return the first replica's value, which varies along no axis, where types tell that."""
        if not _known_axes(x) & {*self._names}:
            return x
        zero = jnp.zeros_like(x)
        mine = jnp.where(jax.lax.axis_index(self._name) == 0, x, zero)
        total: jax.Array = jax.lax.psum(mine, self._name)  # type: ignore[no-untyped-call]
        return total.astype(x.dtype)

    @property
    def _names(self) -> tuple[str, ...]:
        return (self._name,) if isinstance(self._name, str) else tuple(self._name)

    def _free(self, x: Any) -> tuple[str, ...]:
        """Return the axes along which an array does not vary yet."""
        return tuple(name for name in self._names if name not in _known_axes(x))

    def _varying(self, x: Any) -> Any:
        missing = self._free(x) if isinstance(x, jax.Array) else ()
        if not missing:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, missing, to="varying")
        pvary = getattr(jax.lax, "pvary", None)  # before JAX 0.9; still earlier nothing was typed
        return x if pvary is None else pvary(x, missing)


def _known_axes(x: Any) -> frozenset[str]:
    """Return the axes along which an array is known to vary."""
    typeof = getattr(jax, "typeof", None)
    if typeof is None:
        return frozenset()
    kind = typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # from JAX 0.10 on; before, a set
    axes = getattr(kind, "vma", None) if manual is None else manual.varying
    return frozenset(axes or ())


def _bits(x: jax.Array) -> jax.Array:
    """Return the bits of an array of floats as integers; their sum does not depend on the order."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.int32)
    size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits: jax.Array = jax.lax.bitcast_convert_type(x, size)
    return bits.astype(jnp.uint32 if x.dtype.itemsize <= 4 else jnp.uint64)


def check_axes(closed: ClosedJaxpr, name: Name | None) -> None:
    """Check that a loss exchanges nothing along an axis that is not known.

    Raises:
        ValueError: If it does.
    """
    known = set() if name is None else {name} if isinstance(name, str) else {*name}
    for primitive, axes in _exchanges(closed.jaxpr):
        for axis in axes:
            if axis not in known:
                msg = (
                    f"loss_fn uses {primitive} over the axis {axis!r}, so it sees one replica of "
                    f"several; allowed: axis_name={axis!r}, for replicas that hold equal weights"
                )
                raise ValueError(msg)


def _exchanges(jaxpr: Jaxpr) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the collectives of a jaxpr over axes that it does not bind itself."""
    for eqn in jaxpr.eqns:
        primitive = eqn.primitive.name
        if primitive in _BINDERS:
            continue
        if primitive not in _HARMLESS:
            named = [eqn.params[key] for key in _NAMED if key in eqn.params]
            axes = [a for one in named for a in (one if isinstance(one, tuple) else (one,))]
            yield primitive, tuple(a for a in axes if isinstance(a, str))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _exchanges(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
