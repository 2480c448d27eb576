"""Linear maps that cannot be seen by themselves: custom operators, pallas kernels, fused layers.

A registered function is compiled under a name of its own, by which the reader of a jaxpr knows it.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from nullport_jax._sites import DenseSpec, NotLinear, product_spec
from nullport_jax._view import View

_numbers = itertools.count()


@dataclass(frozen=True)
class Declared:
    """What a function was declared to be.

    Attributes:
        labels: The axes of input, weight and output, one letter each; "." for all others.
        input: Position of the input among the arguments.
        weight: Position of the weight.
        bias: Position of the bias, or None.
    """

    labels: tuple[str, str, str]
    input: int
    weight: int
    bias: int | None

    def spec(self, weight: View, x_ndim: int, out: Any, lengths: Sequence[int]) -> DenseSpec:
        """Return the site; arguments as for ``dense_spec``.

        Raises:
            NotLinear: If operands have other axes than the equation, or it is no product of rows.
        """
        x, w, y = self.labels
        more = x_ndim - len(x.replace(".", ""))
        rest = "".join(chr(0xE000 + k) for k in range(max(more, 0)))  # letters of nobody's
        x, y = (labels.replace(".", rest) for labels in (x, y))
        sizes = (x_ndim, len(weight.axes), len(out.shape))
        if (len(x), len(w), len(y)) != sizes:
            msg = "a registered function, with other axes than its equation (as under vmap)"
            raise NotLinear(msg)
        order = [(w.find(a) if a in w else None, x.find(a) if a in x else None) for a in y]
        summed = [(w.find(a), x.find(a)) for a in w if a in x and a not in y]
        return product_spec(weight, order, summed, out, lengths)


REGISTERED: dict[str, Declared] = {}
"""What was declared, by the name under which a function is compiled."""


def register_linear(
    function: Callable[..., jax.Array],
    equation: str = "...i,io->...o",
    *,
    input: int = 0,
    weight: int = 1,
    bias: int | None = None,
) -> Callable[..., jax.Array]:
    """Declare that a function is linear in its weight, and return it so that it is seen.

    Gradients are taken through the function, whose own derivative is compared with what the
    equation says: where they differ, the weight stays.

    Args:
        function: A pallas kernel, a function with a custom rule, or anything else that returns an
            array. Call what is returned in its place, with positional arguments.
        equation: What it computes, as :func:`jax.numpy.einsum` would be asked for it; ``...`` in
            input and output alone.
        input: Position of the input among its arguments.
        weight: Position of the weight.
        bias: Position of a bias that is added along the last axes, or None.

    Returns:
        The function, compiled, and seen by teleports.

    Raises:
        ValueError: If the equation is no product of two operands without repeated axes.
    """
    labels = _labels(equation)
    name = f"nullport_linear_{next(_numbers)}"
    REGISTERED[name] = Declared(labels, input, weight, bias)

    def seen(*args: Any) -> jax.Array:
        return function(*args)

    seen.__name__ = seen.__qualname__ = name
    compiled = jax.jit(seen)

    @functools.wraps(function)
    def call(*args: Any) -> jax.Array:
        found: jax.Array = compiled(*args)
        return found

    return call


def _labels(equation: str) -> tuple[str, str, str]:
    """Return the axes of input, weight and output.

    Raises:
        ValueError: If the equation is no product of two operands without repeated axes.
    """
    match = re.fullmatch(r"([a-zA-Z.]+),([a-zA-Z]+)->([a-zA-Z.]+)", equation.replace(" ", ""))
    found = () if match is None else tuple(part.replace("...", ".") for part in match.groups())
    plain = len(found) == 3 and all(len(set(part)) == len(part) for part in found)
    if not plain or (alone := _alone(*found)):
        what = "" if not plain else f", and {alone!r} is in one operand and not in the output"
        msg = (
            f"equation is {equation!r}{what}; it must be a product of an input and a weight, as in "
            f"'bi,io->bo' or '...i,io->...o'"
        )
        raise ValueError(msg)
    x, w, y = found
    return x, w, y


def _alone(x: str, w: str, y: str) -> str:
    """Return the axes that only one of the three has."""
    return "".join(sorted((set(x) ^ set(w)) - set(y) | set(y) - set(x) - set(w)))
