"""Linear maps that cannot be seen by themselves: custom operators, kernels, fused layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from nullport_torch._calls import PARSERS, Call
from nullport_torch._products import contraction, spelled_out


def register_linear(
    function: Callable[..., Tensor],
    equation: str = "...i,oi->...o",
    *,
    input: int = 0,
    weight: int = 1,
    bias: int | None = None,
) -> Callable[..., Tensor]:
    """Declare that a function is linear in its weight, and return it so that it is seen.

    Gradients are taken through the function, whose own derivative is compared with what the
    equation says: where they differ, the weight stays.

    Args:
        function: A custom operator, or anything else that returns a tensor, such as the ``apply``
            of an autograd function. Call what is returned in its place.
        equation: What it computes, as :func:`torch.einsum` would be asked for it.
        input: Position of the input among its arguments.
        weight: Position of the weight.
        bias: Position of a bias that is added along the last axes, or None.

    Returns:
        The function, seen by teleports.

    Raises:
        ValueError: If the equation has not two operands and an output.
    """
    if equation.count(",") != 1 or "->" not in equation:
        msg = (
            f"equation is {equation!r}; it must have two operands and an output, as in 'bi,oi->bo'"
        )
        raise ValueError(msg)

    def parse(args: Sequence[Any], _: Mapping[str, Any]) -> list[Call]:
        x, w = args[input], args[weight]
        added = args[bias] if bias is not None and len(args) > bias else None
        read = spelled_out((equation, x, w))
        if read is None:
            return []
        found = contraction(getattr(function, "__name__", "registered"), *read, added)
        return [call for call in found if call.w is w]

    @functools.wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Tensor:
        given = tuple(a for a in args if isinstance(a, Tensor))
        if has_torch_function(given):  # also where a teleport watches
            found: Tensor = handle_torch_function(seen, given, *args, **kwargs)
            return found
        return function(*args, **kwargs)

    PARSERS[seen] = parse
    return seen
