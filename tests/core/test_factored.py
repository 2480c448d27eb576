"""Gradients in factors: when they are used, and what is computed of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nullport import TeleportConfig
from nullport._arrays import Norms, joined, product_norm
from nullport._capture import capture
from nullport._factored import FEWER, known_by_site, length
from nullport._graph import LayerGraph, Linearization, Move, Parameter, Use
from nullport._layer import Layer, make_layer
from nullport._layout import Layout, matrix
from nullport._site import DenseSite

RNG = np.random.default_rng(0)
N, OUT, INP = 2, 3 * FEWER, 2 * FEWER


class Still(LayerGraph):
    """Knows where its weights live, and no more."""

    def read(self, parameter: int, array: Any, layout: Layout) -> Any:
        shape = (-1, OUT, INP) if layout.stack else (OUT, INP)
        return np.asarray(array).reshape(shape)


def site(n: int = N, stack: tuple[int, ...] = ()) -> DenseSite:
    x, delta = (RNG.standard_normal((*stack, n, size)) for size in (INP, OUT))
    return DenseSite("dense", x, delta, np.asarray(1.0))


def gradient(found: DenseSite) -> Any:
    return np.swapaxes(found.cotangent, -1, -2) @ found.inputs


def layers(sites: list[DenseSite], lin: Linearization, weight: Any) -> list[Layer]:
    stack = weight.shape[:-2]
    lin.uses = [Use(0, i, "weight", matrix(stack, OUT, INP)) for i in range(len(sites))]
    config, weights = TeleportConfig(bias=False), [weight]
    blocks, _ = capture([Parameter("w")], lin.uses, config)
    return [make_layer(b, Still(), lin, weights, Norms(weights), config) for b in blocks]


def found_by(*sites: DenseSite, factored: list[int], error: float = 0.0) -> dict[int, int]:
    total = sum(map(gradient, sites)) + error
    lin = Linearization(np.asarray(1.0), [total], list(sites), factored=factored)
    weight = RNG.standard_normal(total.shape)
    return known_by_site(layers(list(sites), lin, weight), lin)


@pytest.mark.parametrize("stack", [(), (3,)])
def test_a_weight_with_one_small_site_is_known_by_its_factors(stack: tuple[int, ...]) -> None:
    assert found_by(site(stack=stack), factored=[0]) == {0: 0}


def test_others_are_not() -> None:
    assert found_by(site(), factored=[]) == {}, "the adapter cannot replay along it"
    assert found_by(site(3), factored=[0]) == {}, "more samples than inputs / FEWER"
    assert found_by(site(), site(), factored=[0, 1]) == {}, "two sites"
    assert found_by(site(), factored=[0], error=1.0) == {}, "another use was missed"
    mixed = replace(one := site(), cotangent=one.cotangent.astype("float32"))
    assert found_by(mixed, factored=[0]) == {}, "a cotangent in another precision"


@pytest.mark.parametrize("stack", [(), (3,)])
def test_outputs_along_the_gradient_are_those_of_the_formed_gradient(stack: Any) -> None:
    one, other = site(stack=stack), RNG.standard_normal((*stack, 5, INP))
    expected = other @ np.swapaxes(gradient(one), -1, -2)
    assert np.allclose(one.along(other), expected, rtol=1e-12, atol=1e-12)


def test_the_length_of_a_gradient_that_is_not_formed() -> None:
    one, bias = site(stack=(3,)), RNG.standard_normal(OUT)
    g = gradient(one)
    assert product_norm(one.cotangent, one.inputs) == pytest.approx(np.linalg.norm(g), rel=1e-12)
    lin = Linearization(np.asarray(1.0), [], [one])
    expected = np.hypot(np.linalg.norm(g), np.linalg.norm(bias))
    for v in ([None, bias, None], [g, bias, None]):
        assert length(v, lin, {0: 0}) == pytest.approx(expected, rel=1e-12)
    assert length([g, bias, None], lin, {}) == pytest.approx(expected, rel=1e-12)
    assert joined([np.asarray(3.0), np.asarray(4.0)]) == 5.0


def test_a_move_of_a_weight_stored_the_other_way_is_turned() -> None:
    left, right = RNG.standard_normal((N, OUT)), RNG.standard_normal((N, INP))
    plain = Move(0, matrix((), OUT, INP), right, left)
    assert plain.as_stored() is plain
    swapped = replace(plain, layout=Layout(0, (), ((OUT, 1),), ((INP, OUT),)))
    turned = swapped.as_stored()
    assert turned.left is right
    assert turned.right is left
    assert turned.layout == Layout(0, (), ((INP, OUT),), ((OUT, 1),))
    formed = replace(swapped, left=None, right=left.T @ right)
    assert formed.as_stored() is formed
