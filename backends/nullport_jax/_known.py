"""Values that are known before anything is evaluated: small integers, and counters of loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

SMALL = 1 << 12
"""Elements, over all iterations, of a value that is worth knowing."""

Value: TypeAlias = "tuple[int | None, list[Any]]"
"""The level of a scan and the value in each of its iterations; or None and a single value."""


def of(array: Any) -> Value | None:
    """Return the value of a constant, if it is small and made of integers."""
    if isinstance(array, Tracer) or not hasattr(array, "dtype"):
        return None
    return (None, [np.asarray(array)]) if _worth(array) else None


def _worth(array: Any) -> bool:
    # JAX's own test: dtypes of random keys are none of NumPy's.
    discrete = jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool
    return bool(discrete and np.prod(array.shape, dtype=np.int64) <= SMALL)


def folded(
    eqn: JaxprEqn,
    values: Sequence[Value | None],
    bind: Callable[[JaxprEqn, Sequence[Any]], list[Any]],
) -> list[Value | None]:
    """Return the outputs of an operation whose operands are known."""
    unknown: list[Value | None] = [None] * len(eqn.outvars)
    outputs: list[Any] = [v.aval for v in eqn.outvars]
    if eqn.effects or not all(hasattr(a, "dtype") and _worth(a) for a in outputs):
        return unknown
    given = [value for value in values if value is not None]
    levels = {level for level, _ in given if level is not None}
    if len(given) < len(values) or len(levels) > 1:
        return unknown
    count = max((len(value) for _, value in given), default=1)
    found = []
    for t in range(count):
        with jax.ensure_compile_time_eval():
            out = bind(eqn, [value[t if len(value) > 1 else 0] for _, value in given])
        found.append([np.asarray(x) for x in out])
    level = levels.pop() if levels else None
    return [(level, [step[i] for step in found]) for i in range(len(eqn.outvars))]


def counters(
    jaxpr: Jaxpr,
    consts: int,
    carries: int,
    length: int,
    initial: Sequence[Value | None],
    level: int,
) -> list[Value | None]:
    """Return the carries of a scan that are counters: a known start and a constant step."""
    found: list[Value | None] = [None] * carries
    made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    for k in range(carries):
        own, out, start = jaxpr.invars[consts + k], jaxpr.outvars[k], initial[k]
        eqn = None if isinstance(out, Literal) else made.get(out)
        if eqn is None or start is None or start[0] is not None or length > SMALL:
            continue
        name, (a, *rest) = eqn.primitive.name, eqn.invars
        if name not in ("add", "sub") or len(rest) != 1:
            continue
        if a is not own and name == "add":
            a, rest = rest[0], [a]
        if a is own and isinstance(rest[0], Literal):
            step = int(rest[0].val) * (1 if name == "add" else -1)
            values = [start[1][0] + np.asarray(step * t, start[1][0].dtype) for t in range(length)]
            found[k] = (level, values)
    return found
