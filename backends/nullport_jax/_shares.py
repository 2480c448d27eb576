"""What a product of the program is to each of the parameters that its weight is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax

from nullport.network import Part
from nullport_jax._conv import ConvSpec
from nullport_jax._sites import Spec
from nullport_jax._trace import Share

Factors: TypeAlias = "tuple[Any, Any, Any]"
"""Factors of a part: of rows, of columns, of single elements."""


def sizes_of(tapped: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Return the sizes of groups of rows that were tapped, if any."""
    return () if tapped[3] is None else (tapped[3],)


def with_factors(share: Share, factors: Factors | None) -> Part | None:
    """Return the part of a site with its factors."""
    if share.part is None or factors is None:
        return share.part
    row, column, mask = factors
    return replace(share.part, row=row, column=column, mask=mask)


def held(spec: Spec, part: Part | None, inputs: jax.Array) -> jax.Array:
    """Return what the site of a part holds, given the inputs of the product."""
    if part is None or part.plain:
        return inputs
    found: jax.Array = part.held(inputs, dense=not isinstance(spec, ConvSpec))
    return found


def output_rows(spec: Spec, y: jax.Array) -> jax.Array:
    """Return outputs in the shape of cotangents as rows, (..., samples, out)."""
    return spec.output_rows(y) if isinstance(spec, ConvSpec) else y


def factors_of(share: Share, derivative: jax.Array, lengths: Sequence[int]) -> Factors:
    """Return the factors of a part.

    Args:
        share: The site.
        derivative: Derivative of the weight by the parameter along ones, an axis per scan in front.
        lengths: Lengths of those scans.
    """
    assert share.part is not None  # only parts are scaled
    assert share.layout is not None
    for level in reversed(range(len(lengths))):
        if level not in share.levels:  # the same in every iteration
            derivative = derivative[(slice(None),) * level + (0,)]
    matrices = share.layout.read(derivative)
    part = share.part.rescaled(matrices.reshape(-1, *matrices.shape[-2:]))
    return part.row, part.column, part.mask
