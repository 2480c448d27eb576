"""Losses that say themselves how their results are spread over an explicit mesh.

``out_sharding=`` and ``reshard`` are errors where axes are left to the compiler. Such a loss is
traced with its axes explicit, and evaluated without what it says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import NamedSharding

from nullport_jax._tree import Arrays

_SPREADING = ("reshard", "mesh_cast", "sharding_constraint")
"""Primitives that do nothing but spread an array in another way."""

_SAID = ("sharding", "out_sharding", "dst_sharding")
"""Parameters of others that say how their results are spread."""


_OPENED = ("jit", "pjit", "custom_jvp_call")
"""Primitives whose inside is evaluated as if it stood there. A rule for forward mode, as that of
``relu``, knows spread arrays only; the inside is differentiated instead, which is the same but at
single points."""


def unspread(loss_fn: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """Return a loss that can be called where no axis is explicit.

    Args:
        loss_fn: Takes pytrees.
        args: Its arguments, spread over the present mesh as they are in every call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    specs = [jax.typeof(a).sharding.spec for a in Arrays(args).arrays]

    def loss(*args: Any) -> Any:
        try:
            return loss_fn(*args)
        except Exception:
            given = Arrays(args)
            if len(given.arrays) != len(specs):
                raise
            struct: Any = jax.ShapeDtypeStruct
            like = [
                struct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
                for a, spec in zip(given.arrays, specs, strict=True)
            ]
            with jax.sharding.use_abstract_mesh(mesh):
                closed, shape = jax.make_jaxpr(
                    lambda *arrays: loss_fn(*given.tree(arrays)), return_shape=True
                )(*like)
            found = _run(closed.jaxpr, closed.consts, given.arrays)
            return jax.tree.unflatten(jax.tree.structure(shape), found)

    return loss


def _run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, leaving out how arrays are spread."""
    values: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return v.val if hasattr(v, "val") else values[v]

    values.update(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        inputs: list[Any] = [read(v) for v in eqn.invars]
        kind: Any = eqn.primitive
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if kind.name in _SPREADING:
            outputs = inputs
        elif kind.name in _OPENED and isinstance(inner, ClosedJaxpr):
            outputs = _run(inner.jaxpr, inner.consts, inputs)
        else:
            params = {key: _plain(key, value) for key, value in eqn.params.items()}
            bound = kind.get_bind_params(params)
            subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
            found = kind.bind(*subfuns, *inputs, **params)
            outputs = found if kind.multiple_results else [found]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _plain(key: str, value: Any) -> Any:
    """Return a parameter of a primitive without what it says of how arrays are spread."""
    if key in _SAID:
        return None
    if isinstance(value, tuple) and any(isinstance(part, ClosedJaxpr) for part in value):
        return tuple(_plain(key, part) for part in value)
    if isinstance(value, ClosedJaxpr):
        return _retraced(value.jaxpr, value.consts)
    if isinstance(value, Jaxpr):
        return _retraced(value, []).jaxpr
    return value


def _retraced(jaxpr: Jaxpr, consts: Sequence[Any]) -> ClosedJaxpr:
    struct: Any = jax.ShapeDtypeStruct
    avals: list[Any] = [v.aval for v in jaxpr.invars]
    like = [struct(aval.shape, aval.dtype) for aval in avals]
    found: ClosedJaxpr = jax.make_jaxpr(lambda *args: _run(jaxpr, consts, args))(*like)
    return found
