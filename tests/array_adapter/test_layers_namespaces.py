"""Every layer in every namespace: the same numbers, transposed passes, dtype and device kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import (
    CASES,
    CONVOLUTIONS,
    PLACES,
    Case,
    Place,
    dot,
    error,
    leaves,
    like,
    place,
    tree_map,
)

from nullport_arrays.layers import CrossEntropy, Dense, Sequential, SquaredError, value_and_grad


@pytest.fixture(params=PLACES)
def here(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as found:
        yield found


SLOW = {"mlp", "cnn", "transformer"} | {case.name for case in CONVOLUTIONS[:-2]}
"""Not run in JAX without jit, where every operation is compiled by itself."""

EVERYWHERE = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in PLACES
    for case in CASES
    if name != "jax" or case.name not in SLOW
]
every_case_everywhere = pytest.mark.parametrize(("here", "case"), EVERYWHERE, indirect=["here"])


def passes(case: Case) -> Any:
    """All three passes as one function of arrays, which may be traced."""

    def run(params: Any, x: Any, dy: Any, dx: Any, dparams: Any) -> dict[str, Any]:
        y, cache = case.layer.forward(params, x)
        cotangent, grads = case.layer.pullback(params, cache, dy)
        tangent = case.layer.pushforward(params, cache, dx, dparams)
        found = {"y": y, "tangent": tangent, "grads": grads}
        return found if cotangent is None else {**found, "cotangent": cotangent}

    return run


def arguments(case: Case) -> tuple[Any, ...]:
    """Parameters, inputs and all (co)tangents, NumPy float64."""
    params, x = like(case.layer.init(np.random.default_rng(0)), 2), case.inputs()
    y, _ = case.layer.forward(params, x)
    return params, x, like(y, 3), None if case.tokens else like(x, 4), like(params, 5)


@every_case_everywhere
def test_passes_are_transposed_and_as_in_numpy(here: Place, case: Case) -> None:
    params, x, dy, dx, dparams = arguments(case)
    moved = [None if one is None else here.put(one) for one in (params, x, dy, dx, dparams)]
    found = here.back(here.jit(passes(case))(*moved))
    expected = passes(case)(params, x, dy, dx, dparams)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert error(value, expected[name]) <= 1e-12, name
        assert all(leaf.dtype == np.float64 for leaf in leaves(value))
    forward = dot(dy, found["tangent"])
    backward = dot(found["grads"], dparams)
    backward += dot(found["cotangent"], dx) if "cotangent" in found else 0.0
    assert abs(forward - backward) <= 1e-12 * (1 + abs(forward))


@every_case_everywhere
def test_float32_stays(here: Place, case: Case) -> None:
    moved = [None if a is None else here.put(a, "float32") for a in arguments(case)]
    found = here.back(here.jit(passes(case))(*moved))
    assert {leaf.dtype for leaf in leaves(found)} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("integers", ["int32", "int64", "uint8"])
def test_cross_entropy_in_every_place(here: Place, dtype: str, integers: str) -> None:
    outputs = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(dtype)
    targets = (np.arange(6).reshape(2, 3) % 4).astype(integers)
    check_loss(here, CrossEntropy(), outputs, targets)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_error_in_every_place(here: Place, dtype: str) -> None:
    outputs, targets = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(dtype)
    check_loss(here, SquaredError(), outputs, targets)
    check_loss(here, SquaredError(), outputs, targets.astype("float64"))


def check_loss(here: Place, loss: Any, outputs: Any, targets: Any) -> None:
    moved = here.put(outputs), here.put(targets)
    value, cotangent = here.jit(loss.value_and_cotangent)(*moved)
    assert value.shape == ()
    assert here.back(here.jit(loss.value)(*moved)) == pytest.approx(here.back(value), rel=1e-6)
    expected = loss.value_and_cotangent(outputs, targets)
    limit = 1e-6 if outputs.dtype == np.float32 else 1e-12
    for one, other in zip((value, cotangent), expected, strict=True):
        assert here.back(one).dtype == outputs.dtype
        assert error(here.back(one), other) <= limit


def test_a_gradient_under_jit_lowers_the_loss(here: Place) -> None:
    network, rng = Sequential(Dense(3, 2)), np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.integers(0, 2, 8)
    params, x, y = here.put(network.init(rng)), here.put(x, "float32"), here.put(y)

    def step(params: Any, x: Any, y: Any) -> Any:
        loss, grads = value_and_grad(network, CrossEntropy(), params, x, y)
        return loss, tree_map(lambda p, g: p - 0.5 * g, params, grads)

    first, params = here.jit(step)(params, x, y)
    second, _ = here.jit(step)(params, x, y)
    assert float(here.back(second)) < float(here.back(first))
