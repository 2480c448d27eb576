"""What a linear map is to each of the parameters whose elements its weight is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nullport.network import Layout, Part, parts, separated
from nullport_torch import _conv
from nullport_torch._calls import Call
from nullport_torch._conv import Geometry
from nullport_torch._copies import Terms


def parts_of(call: Call, terms: Terms, starts: Sequence[int], rows: int) -> list[Part]:
    """Cut the weight of a call into parts.

    Args:
        call: The linear map.
        terms: The terms of its weight.
        starts: First number of every parameter.
        rows: Number of rows of its input.

    Raises:
        NotSeparable: If a parameter cannot be moved apart from the rest.
    """
    found = []
    for term in terms:
        scaled = term.scaled(call.scale)
        factors = [] if scaled.factor is None else separated(_matrices(call, scaled.factor))
        positions = _matrices(call, term.numbers).cpu().numpy() - 1
        found += parts(positions, starts, factors, rows)
    return found


def _matrices(call: Call, weight: Tensor) -> Tensor:
    """Return an array shaped like the weight of a call as matrices (stack, out, in)."""
    if isinstance(call.how, Geometry):
        found = _conv.as_matrices(call.how, weight)
        return found if found.ndim == 3 else found[None]
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    stack, _, out, inp = roles
    order = [call.how.w.index(letter) for letter in stack + out + inp]
    moved = weight.permute(order)
    sizes = [moved.shape[: len(stack)], moved.shape[len(stack) : len(stack) + len(out)]]
    return moved.reshape(sizes[0].numel(), sizes[1].numel(), -1)


def bias_of(
    call: Call, part: Part, terms: Terms, starts: Sequence[int]
) -> tuple[int, Layout] | None:
    """Return parameter and layout of the bias that belongs to a part, or None if there is none."""
    if call.b is None or len(terms) != 1 or terms[0].factor is not None:
        return None
    vectors = _vectors(call, terms[0].numbers)
    return None if vectors is None else part.bias(vectors.cpu().numpy() - 1, starts)


def _vectors(call: Call, bias: Tensor) -> Tensor | None:
    """Return an array shaped like the bias of a call as (stack, out), or None if it is none."""
    if isinstance(call.how, Geometry):
        return bias.reshape(call.how.groups, -1)
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    stack, samples, out, _ = roles
    y = call.how.y
    padded = bias.reshape((1,) * (len(y) - bias.ndim) + bias.shape)
    if any(padded.shape[y.index(letter)] != 1 for letter in samples):
        return None
    sizes = dict(zip(call.how.w, call.w.shape, strict=True))
    moved = padded.permute([y.index(letter) for letter in samples + stack + out])
    moved = moved.reshape(moved.shape[len(samples) :])
    shape = [sizes[letter] for letter in stack + out]
    wide = moved.expand(shape)
    return wide.reshape(torch.Size(shape[: len(stack)]).numel(), -1)
