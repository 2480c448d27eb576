"""A site known by its gradient: what it hands over, and that projections make it exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector
from hypothesis import given
from hypothesis import strategies as st

from nullport._capture import Block
from nullport._direction import Accumulator
from nullport._gradient_site import GradientSite, layer_input
from nullport._graph import Linearization
from nullport._layout import matrix
from nullport._projection import threshold_filter
from nullport._rowspace import row_space
from nullport._site import DenseSite


def draw(xp: Any, seed: int, *shape: int) -> Any:
    return xp.asarray(np.random.default_rng(seed).standard_normal(shape))


def site_of(xp: Any, n: int, out: int, inp: int) -> tuple[GradientSite, DenseSite]:
    x, delta = draw(xp, 0, n, inp), draw(xp, 1, n, out)
    norm = xp.linalg.vector_norm(x)
    gradient = xp.matrix_transpose(delta) @ x
    return GradientSite("product", x, gradient, norm), DenseSite("product", x, delta, norm)


@given(n=st.integers(1, 6), out=st.integers(1, 5), inp=st.integers(6, 9))
def test_projection_removes_the_other_term(xp: Any, n: int, out: int, inp: int) -> None:
    """(deltadot^T X + delta^T Xdot) P = (delta^T Xdot) P, whatever deltadot is."""
    whole, dense = site_of(xp, n, out, inp)
    x_dot, delta_dot = draw(xp, 2, n, inp), draw(xp, 3, n, out)
    both = (
        xp.matrix_transpose(delta_dot) @ dense.inputs + xp.matrix_transpose(dense.cotangent) @ x_dot
    )
    block = Block("w", 0, matrix((), out, inp), (0,))
    found = []
    for site, tangent in ((whole, both), (dense, x_dot)):
        lin = Linearization(xp.asarray(0.0), [], [site], [])
        filter_ = threshold_filter(row_space([dense.inputs], n), 0.0)
        got: dict[int, Any] = {}
        accumulator = Accumulator([block], [filter_], lin, lambda _: None, got.__setitem__)
        accumulator.receive(0, tangent)
        found.append(np.asarray(got[0].dense()))
    expected = np.asarray(dense.cotangent).T @ np.asarray(x_dot)
    expected = expected @ null_projector(np.asarray(dense.inputs))
    scale = np.linalg.norm(np.asarray(both)) + 1.0
    assert np.linalg.norm(found[0] - expected) <= 1e-12 * scale
    assert np.linalg.norm(found[1] - expected) <= 1e-12 * scale


def test_hands_over_its_gradient(xp: Any) -> None:
    whole, dense = site_of(xp, 4, 3, 5)
    assert whole.samples == 4
    assert layer_input(whole) is dense.inputs
    assert layer_input(dense) is dense.inputs
    other, probe = draw(xp, 5, 3, 5), draw(xp, 6, 3)
    assert whole.weight_gradient(other) is other
    contracted = np.asarray(whole.weight_gradient(other, probe))
    assert np.allclose(contracted, np.asarray(probe) @ np.asarray(other))
    assert contracted.shape == (1, 5)
    assert next(whole.rows(2)).shape == (2, 5)
    weight, bias = draw(xp, 7, 3, 5), draw(xp, 8, 3)
    expected = np.asarray(dense.inputs) @ np.asarray(weight).T + np.asarray(bias)
    assert np.allclose(np.asarray(whole.apply(weight, bias)), expected)
    with pytest.raises(ValueError, match="known by its gradient has no cotangent"):
        whole.bias_gradient()
