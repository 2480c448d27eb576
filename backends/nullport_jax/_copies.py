"""Arrays whose elements are elements of parameters: moved about, scaled, and added to.

Numbers ride along, as in ``nullport_torch``: an operation that only moves elements is evaluated on
the numbers of its operands, whatever is left empty has the number 0. Factors are not followed, only
the axes along which they vary: what they are is the derivative of the weight by the parameter,
along ones. So they must not depend on weights, nor on the iteration of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
from jax.extend.core import JaxprEqn

from nullport_jax._view import View, whole

Numbers = npt.NDArray[np.int64]

MOVES = [
    "transpose",
    "reshape",
    "squeeze",
    "broadcast_in_dim",
    "slice",
    "split",
    "concatenate",
    "rev",
    "gather",
    "dynamic_slice",
    "pad",
    "expand_dims",
    "dynamic_update_slice",
    "stack",
]
"""Operations whose outputs hold elements of their operands."""

ALONG = {"transpose", "broadcast_in_dim", "concatenate", "squeeze", "slice", "rev"}
"""Those of them that keep along which axes factors vary."""


@dataclass(frozen=True)
class Term:
    """A summand whose elements are elements of parameters.

    Attributes:
        numbers: The number of every element, 0 for none; axes that scans have taken in front.
        varies: Along which axes its factor varies; None if it has none.
    """

    numbers: Numbers
    varies: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Copy:
    """An array that is made of elements of parameters.

    Attributes:
        terms: Its summands.
        parameters: The parameters.
        levels: The levels of the scans that have taken an axis.
        stopped: Whether no gradient flows back.
    """

    terms: tuple[Term, ...]
    parameters: frozenset[int]
    levels: tuple[int, ...] = ()
    stopped: bool = False
    is_weight: bool = True

    @property
    def scaled(self) -> bool:
        """Whether any term has a factor."""
        return any(term.varies is not None for term in self.terms)

    def taken(self, level: int) -> Copy:
        """Return what one iteration of the scan at ``level`` sees: the first axis is taken."""
        terms = [replace(t, varies=None if t.varies is None else t.varies[1:]) for t in self.terms]
        return replace(self, terms=tuple(terms), levels=(*self.levels, level))

    def view(self) -> View:
        """Return the view of the array itself, its taken axes outside."""
        full = whole(0, self.terms[0].numbers.shape, is_weight=True)
        count = len(self.levels)
        outer = tuple(zip(self.levels, full.axes[:count], strict=True))
        return replace(full, axes=full.axes[count:], outer=outer, stopped=self.stopped)


Tracked: TypeAlias = "View | Copy"


def copied(view: View, start: int) -> Copy | None:
    """Return a view of a parameter, whose numbers begin at ``start``, as a copy."""
    levels = tuple(level for level, _ in view.outer)
    axes = [axes for _, axes in view.outer] + list(view.axes)
    if not view.is_weight or levels != tuple(sorted(levels)):
        return None
    numbers = np.asarray([start + view.offset + 1], dtype=np.int64)
    shape = []
    for pairs in axes:
        shape.append(int(np.prod([n for n, _ in pairs], dtype=np.int64)))
        for n, stride in pairs:
            numbers = (numbers[:, None] + np.arange(n) * stride).reshape(-1)
    term = Term(numbers.reshape(shape))
    return Copy((term,), frozenset({view.source}), levels, view.stopped)


def moved(
    eqn: JaxprEqn,
    operands: Sequence[Copy | None],
    known: Sequence[Any],
    bind: Callable[[JaxprEqn, Sequence[Any]], list[Any]],
) -> list[Copy] | None:
    """Evaluate an operation that moves elements on their numbers.

    Args:
        eqn: The operation.
        operands: Its operands that are followed.
        known: Values of the others where they are known (indices), else None.
        bind: Evaluates an operation.
    """
    tracked = [copy for copy in operands if copy is not None]
    levels = tracked[0].levels
    if any(copy.levels != levels for copy in tracked) or len({c.stopped for c in tracked}) > 1:
        return None
    avals: list[Any] = [v.aval for v in eqn.invars]
    integer = [np.issubdtype(a.dtype, np.integer) for a in avals]
    if any(i and k is None for i, k in zip(integer, known, strict=True)):
        return None
    lead = tracked[0].terms[0].numbers.shape[: len(levels)]
    results: list[list[Term]] = [[] for _ in eqn.outvars]
    for k in range(max(len(copy.terms) for copy in tracked)):
        own = [None if c is None or k >= len(c.terms) else c.terms[k] for c in operands]
        parts = []
        for at in np.ndindex(*lead):
            given = [
                value
                if is_index
                else np.zeros(aval.shape, np.int64)
                if term is None
                else term.numbers[at]
                for term, value, is_index, aval in zip(own, known, integer, avals, strict=True)
            ]
            with jax.ensure_compile_time_eval():
                parts.append([np.asarray(x, np.int64) for x in bind(eqn, given)])
        varies = _varies(eqn, own)
        for i, result in enumerate(results):
            found = np.stack([part[i] for part in parts]).reshape(*lead, *parts[0][i].shape)
            result.append(Term(found, varies if varies is None else varies[: found.ndim]))
    parameters = frozenset().union(*(copy.parameters for copy in tracked))
    return [Copy(tuple(r), parameters, levels, tracked[0].stopped) for r in results]


def _varies(eqn: JaxprEqn, terms: Sequence[Term | None]) -> tuple[bool, ...] | None:
    """Return along which axes the factor of a result varies, or None if it has none."""
    found = [(t.varies, i) for i, t in enumerate(terms) if t is not None and t.varies is not None]
    out: Any = eqn.outvars[0].aval
    ndim = len(out.shape)
    name = eqn.primitive.name
    if not found:
        return None
    if name == "concatenate":
        pairs = [v for v, _ in found]
        axis = eqn.params["dimension"]
        return tuple(k == axis or any(v[k] for v in pairs) for k in range(ndim))
    varies = found[0][0]
    assert varies is not None  # those without were left out
    if not any(varies):
        return (False,) * ndim
    if name == "transpose":
        return tuple(varies[k] for k in eqn.params["permutation"])
    if name == "broadcast_in_dim":
        places = dict(zip(eqn.params["broadcast_dimensions"], varies, strict=True))
        return tuple(places.get(k, False) for k in range(ndim))
    if name == "squeeze":
        return tuple(v for k, v in enumerate(varies) if k not in eqn.params["dimensions"])
    return varies if name in ALONG else (True,) * ndim


def scaled(copy: Copy, along: Sequence[bool]) -> Copy:
    """Return a copy times a factor that varies along some axes."""

    def times(term: Term) -> Term:
        old = term.varies or (False,) * len(along)
        return replace(term, varies=tuple(a or b for a, b in zip(old, along, strict=True)))

    return replace(copy, terms=tuple(map(times, copy.terms)))


def summed(copies: Sequence[Copy]) -> Copy | None:
    """Return the sum of copies, or None if scans have taken other axes of them."""
    first = copies[0]
    if any((c.levels, c.stopped) != (first.levels, first.stopped) for c in copies):
        return None
    terms = tuple(term for copy in copies for term in copy.terms)
    return replace(
        first, terms=terms, parameters=frozenset().union(*(c.parameters for c in copies))
    )
