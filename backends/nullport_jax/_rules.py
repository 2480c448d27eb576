"""Functions with a derivative rule of their own, whose inside may be read if the rule is true.

A rule replaces the derivative of a function by anything: a cheaper form of the same, or something
else, such as a gradient that is passed straight through a rounding. Where it is the derivative, the
function may be evaluated as if there were no rule. That is tried at random points before anything
is evaluated; the gradient itself is taken by the user's rules, and sites are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun

from nullport.network import MISMATCH

RULES = {
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}
"""Calls with a rule, and the parameter that holds the jaxpr of the function itself."""

SCALES = ((1.0, 1.0), (0.1, 100.0))
"""Scales of inputs and of cotangents: a rule that clips is none at some of them."""


def is_derivative(
    eqn: JaxprEqn, bind: Callable[[JaxprEqn, Sequence[Any]], list[Any]], known: Sequence[Any]
) -> bool:
    """Tell whether the rule of a call gives values and derivatives of the function itself.

    Args:
        eqn: The call.
        bind: Evaluates it with its rule.
        known: Values of its operands where they are known, else None.
    """
    closed = eqn.params[RULES[eqn.primitive.name]]
    if not isinstance(closed, ClosedJaxpr):
        return False
    rng = np.random.default_rng(0)
    try:
        with jax.ensure_compile_time_eval():
            return all(_agrees(eqn, closed, bind, known, rng, *scale) for scale in SCALES)
    except Exception:  # whatever a foreign rule or kernel raises where it is not meant to run
        return False


def _agrees(
    eqn: JaxprEqn,
    closed: ClosedJaxpr,
    bind: Callable[[JaxprEqn, Sequence[Any]], list[Any]],
    known: Sequence[Any],
    rng: np.random.Generator,
    scale: float,
    pull: float,
) -> bool:
    """Compare both ways at one random point."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    point = [_drawn(a, k, rng, scale) for a, k in zip(avals, known, strict=True)]
    cotangents = [_cotangent(v.aval, rng, pull) for v in eqn.outvars]
    ways: list[Callable[..., Any]] = [lambda *a: bind(eqn, a), lambda *a: jaxpr_as_fun(closed)(*a)]

    def both(function: Callable[..., Any]) -> Any:
        out, back = jax.vjp(lambda *a: list(function(*a)), *point)
        return [out, [g for g in back(cotangents) if g.dtype != float0]]

    found = [jax.tree.leaves(both(way)) for way in ways]
    return all(_same(a, b) for a, b in zip(*found, strict=True))


def _drawn(aval: Any, known: Any, rng: np.random.Generator, scale: float) -> jax.Array:
    if known is not None:
        return jnp.asarray(known, aval.dtype)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return jnp.zeros(aval.shape, aval.dtype)
    return jnp.asarray(scale * rng.standard_normal(aval.shape), aval.dtype)


def _cotangent(aval: Any, rng: np.random.Generator, scale: float) -> Any:
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, float0)
    return _drawn(aval, None, rng, scale)


def _same(a: jax.Array, b: jax.Array) -> bool:
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return bool(jnp.array_equal(a, b))
    tolerance = MISMATCH[min(64, 8 * a.dtype.itemsize)]
    return bool(jnp.linalg.norm(jnp.ravel(a - b)) <= tolerance * jnp.linalg.norm(jnp.ravel(b)))
