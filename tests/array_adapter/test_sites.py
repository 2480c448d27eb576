"""A site that is known by the gradient of its weight, against one with inputs and cotangents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy

from nullport.network import DenseSite
from nullport_arrays._sites import GradientSite, layer_input


def test_a_gradient_stands_in_for_inputs(xp: Any) -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return xp.asarray(rng.standard_normal(shape))

    x, delta = draw(4, 5), draw(4, 3)
    one = xp.linalg.vector_norm(x)
    plain = DenseSite("product", x, delta, one)
    held = DenseSite("product", x, None, one)
    whole = GradientSite("product", held, xp.matrix_transpose(delta) @ x)
    assert whole.samples == plain.samples == 4
    assert whole.output_norm is one
    assert layer_input(whole) is x
    assert layer_input(plain) is x
    size = np.linalg.norm(to_numpy(whole.held.inputs))
    assert to_numpy(whole.cotangent) * size == pytest.approx(to_numpy(whole.inputs), rel=1e-12)
    other, probe = draw(3, 5), draw(3)
    assert whole.weight_gradient(other) is other
    contracted = to_numpy(whole.weight_gradient(other, probe))
    assert np.allclose(contracted, to_numpy(probe) @ to_numpy(other))
    assert contracted.shape == (1, 5)
    assert np.allclose(to_numpy(plain.weight_gradient(x)), to_numpy(whole.inputs))
    weight, bias = draw(3, 5), draw(3)
    expected = to_numpy(x) @ to_numpy(weight).T
    assert next(iter(whole.rows())) is x
    assert (to_numpy(next(iter(whole.rows(2)))) == to_numpy(x)[::2]).all()
    assert np.allclose(to_numpy(whole.apply(weight)), expected)
    assert np.allclose(to_numpy(whole.apply(weight, bias)), expected + to_numpy(bias))
    with pytest.raises(ValueError, match="known by its gradient has no cotangent"):
        whole.bias_gradient()
