"""What teleports see: each linear map once per pass, and the rows that its gradient is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import (
    CNN,
    CONVOLUTIONS,
    MLP,
    PLACES,
    TRANSFORMER,
    Case,
    Place,
    error,
    like,
    place,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nullport_arrays.layers import SILENT, Attention, Conv2d, Dense, Watch, flatten, unflatten

PATHS = {
    "mlp": ["1", "3", "5"],
    "cnn": ["0", "3", "6"],
    "transformer": [
        *(f"{b}.0.1.{name}" for b in (2,) for name in ("query", "key", "value", "out")),
        "2.1.1",
        "2.1.3",
        *(f"{b}.0.1.{name}" for b in (3,) for name in ("query", "key", "value", "out")),
        "3.1.1",
        "3.1.3",
        "6",
    ],
}
NETWORKS = [
    Case("mlp", MLP, (3, 2, 6)),
    Case("cnn", CNN, (2, 5, 6, 3)),
    Case("transformer", TRANSFORMER, (2, 6), tokens=11),
]
LINEAR = [
    *CONVOLUTIONS,
    Case("dense", Dense(4, 3), (5, 4)),
    Case("dense-3d", Dense(4, 3), (2, 3, 4)),
    Case("dense-no-axes", Dense(4, 3), (4,)),
]


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.arrays: dict[str, Any] = {}
        self.layers: dict[str, Any] = {}

    def __call__(self, path: str, layer: Any, array: Any) -> None:
        self.paths.append(path)
        self.arrays[path], self.layers[path] = array, layer


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_every_linear_map_is_seen_once_per_pass(case: Case) -> None:
    params, x = like(case.layer.init(np.random.default_rng(0)), 2), case.inputs()
    inputs, cotangents, tangents = Log(), Log(), Log()
    y, cache = case.layer.forward(params, x, Watch(inputs))
    _, grads = case.layer.pullback(params, cache, like(y, 3), Watch(cotangents))
    case.layer.pushforward(params, cache, None, params, Watch(tangents))
    paths = PATHS[case.name]
    assert inputs.paths == paths
    assert sorted(cotangents.paths) == sorted(paths)
    constant = [] if case.tokens else paths[:1]  # its input depends on no parameter
    assert tangents.paths == paths[len(constant) :]
    flat = flatten(grads)
    for path, layer in inputs.layers.items():
        assert cotangents.layers[path] == layer
        rows, deltas = (
            layer.rows(inputs.arrays[path]),
            layer.cotangent_rows(cotangents.arrays[path]),
        )
        gradient = layer.matrix(flat[f"{path}.weight"])
        assert error(np.matrix_transpose(deltas) @ rows, gradient) <= 1e-12
        if path in tangents.arrays:
            assert tangents.arrays[path].shape == inputs.arrays[path].shape


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_tangents_of_inputs_are_their_derivatives(case: Case) -> None:
    params, x = like(case.layer.init(np.random.default_rng(0)), 2), case.inputs()
    v, step, tangents = like(params, 3), 1e-6, Log()
    _, cache = case.layer.forward(params, x)
    case.layer.pushforward(params, cache, None, v, Watch(tangents))
    ends = []
    for sign in (1, -1):
        log = Log()
        flat, along = flatten(params), flatten(v)
        moved = {name: array + sign * step * along[name] for name, array in flat.items()}
        case.layer.forward(unflatten(moved), x, Watch(log))
        ends.append(log.arrays)
    for path, tangent in tangents.arrays.items():
        slope = (ends[0][path] - ends[1][path]) / (2 * step)
        assert error(tangent, slope) <= 1e-6


@pytest.fixture(params=PLACES)
def here(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as found:
        yield found


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_rows_make_the_output_and_the_gradient(here: Place, case: Case) -> None:
    layer: Any = case.layer
    params = like(layer.init(np.random.default_rng(0)), 2)
    y, _ = layer.forward(params, case.inputs())

    def run(params: Any, x: Any, dy: Any) -> Any:
        xp = here.xp
        y, cache = layer.forward(params, x)
        _, grads = layer.pullback(params, cache, dy)
        rows, deltas, matrix = layer.rows(x), layer.cotangent_rows(dy), layer.matrix
        bias = params.get("bias", xp.zeros(y.shape[-1], dtype=y.dtype, device=here.device))
        return {
            "output": layer.cotangent_rows(y - bias),
            "product": rows @ xp.matrix_transpose(matrix(params["weight"])),
            "gradient": matrix(grads["weight"]),
            "from rows": xp.matrix_transpose(deltas) @ rows,
        }

    moved = here.put(params), here.put(case.inputs()), here.put(like(y, 3))
    found = here.back(here.jit(run)(*moved))
    assert error(found["product"], found["output"]) <= 1e-12
    assert error(found["from rows"], found["gradient"]) <= 1e-12
    stack = (layer.groups,) if getattr(layer, "groups", 1) > 1 else ()
    assert found["gradient"].shape[:-2] == stack


@settings(max_examples=30)
@given(cuts=st.tuples(st.integers(0, 5), st.integers(0, 5)), groups=st.sampled_from([1, 2]))
def test_rows_of_some_samples_are_those_rows(cuts: tuple[int, int], groups: int) -> None:
    a, b = sorted(cuts)
    for layer, shape in (
        (Conv2d(4, 4, (2, 3), stride=2, padding=1, groups=groups), (5, 4, 5, 4)),
        (Dense(4, 3), (5, 2, 4)),
    ):
        x = np.random.default_rng(0).standard_normal(shape)
        every: Any = layer.rows(x)
        each = every.shape[-2] // len(x)
        assert np.array_equal(layer.rows(x[a:b]), every[..., a * each : b * each, :])


def test_a_watch_knows_its_path() -> None:
    log, layer = Log(), Dense(2, 2)
    watch = Watch(log)
    watch(layer, "root")
    watch["a"]["b"](layer, "child")
    assert log.arrays == {"": "root", "a.b": "child"}
    SILENT["a"](layer, "nothing")
    assert SILENT["a"] is SILENT


def test_attention_names_its_four_sites() -> None:
    log, layer = Log(), Attention(4, 2)
    layer.forward(layer.init(np.random.default_rng(0)), np.ones((1, 2, 4)), Watch(log, "here"))
    assert log.paths == ["here.query", "here.key", "here.value", "here.out"]
    assert {layer.kind for layer in log.layers.values()} == {"dense"}
