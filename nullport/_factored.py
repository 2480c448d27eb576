"""Gradients that need not be formed.

The gradient ``g = delta^T X`` (out, in) of a weight with one dense site is known by its factors.
With n samples, n far below ``out`` and ``in``, they are smaller than ``g``, and enough for

    X' g^T = (X' X^T) delta,        ||g||^2 = <X X^T, delta delta^T>:

a finite difference along ``g``, and its length. Where an objective asks for tangents along the
gradient itself, a step then makes nothing that is as large as a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from nullport._arrays import Array, joined, known, namespace, norm, product_norm, widen
from nullport._graph import Linearization
from nullport._layer import Layer
from nullport._objective import Vector
from nullport._site import DenseSite

FEWER = 8
"""How many times as many outputs, and inputs, as samples make factors the cheaper form."""


def known_by_site(layers: Sequence[Layer], lin: Linearization) -> dict[int, int]:
    """Return, by parameter, the site whose factors are its whole gradient.

    None at all are found where sites are known not to account for a gradient.

    Args:
        layers: The layers.
        lin: The linearization that holds their sites.
    """
    able = [layer for layer in layers if _is_factored(layer, lin)]
    hidden = [layer.hidden for layer in able]
    if hidden and known(namespace(lin.loss).any(namespace(lin.loss).stack(hidden))):
        return {}
    return {layer.block.parameter: layer.block.sites[0] for layer in able}


def _is_factored(layer: Layer, lin: Linearization) -> bool:
    """Whether one site has the whole gradient of a parameter, in factors that are smaller."""
    index, *more = layer.block.sites
    site, gradient = lin.sites[index], lin.gradients[layer.block.parameter]
    if more or index not in lin.factored or not isinstance(site, DenseSite):
        return False
    if gradient is None or site.cotangent is None:
        return False
    whole: bool = layer.block.layout.size == prod(gradient.shape)
    alike: bool = gradient.dtype == site.inputs.dtype == site.cotangent.dtype
    few: bool = FEWER * site.samples <= min(site.inputs.shape[-1], site.cotangent.shape[-1])
    return whole and alike and few


def length(v: Vector, lin: Linearization, along: Mapping[int, int]) -> Array:
    """Return the norm of the gradient, 0-d, with the parts ``along`` sites taken from factors."""
    rest = [norm(widen(a)) for i, a in enumerate(v) if a is not None and i not in along]
    sites = (lin.sites[i] for i in along.values())
    return joined([*rest, *(product_norm(site.cotangent, site.inputs) for site in sites)])
