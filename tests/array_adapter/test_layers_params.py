"""Parameters: initial values, names, conversion; and what constructors and inputs are refused."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import (
    CASES,
    CNN,
    MLP,
    PLACES,
    TRANSFORMER,
    Case,
    every_case,
    leaves,
    place,
    tree_map,
)

import nullport_arrays.layers as nl
from nullport_arrays.layers import (
    Attention,
    Conv2d,
    CrossEntropy,
    Dense,
    Embedding,
    Flatten,
    LayerNorm,
    LeakyReLU,
    MaxPool2d,
    Mean,
    Position,
    ReLU,
    Residual,
    Sequential,
    SquaredError,
    Tanh,
    convert,
    flatten,
    unflatten,
    value_and_grad,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_public_name_is_listed() -> None:
    named = {name for name in vars(nl) if not name.startswith("_")}
    assert set(nl.__all__) == named
    assert len(set(nl.__all__)) == len(nl.__all__)


@every_case
def test_initial_parameters_are_float32_and_gradients_have_their_structure(case: Case) -> None:
    params = case.layer.init(rng())
    assert {leaf.dtype for leaf in leaves(params)} <= {np.dtype("float32")}
    assert list(flatten(params)) == list(flatten(case.layer.init(rng())))
    y, cache = case.layer.forward(params, case.inputs().astype("int64" if case.tokens else "f4"))
    _, grads = case.layer.pullback(params, cache, y)
    assert tree_map(lambda g: g.shape, grads) == tree_map(lambda p: p.shape, params)


@every_case
def test_nothing_is_changed_in_place(case: Case) -> None:
    def locked(tree: Any) -> Any:
        for leaf in leaves(tree):
            if isinstance(leaf, np.ndarray):
                leaf.flags.writeable = False
        return tree

    params, x = locked(case.layer.init(rng())), locked(case.inputs())
    y, cache = case.layer.forward(params, x)
    before = y.copy()
    case.layer.pullback(params, cache, locked(y.copy()))
    case.layer.pushforward(params, cache, None if case.tokens else x, params)
    assert np.array_equal(y, before)


def test_layers_are_values() -> None:
    for case in CASES:
        assert hash(case.layer) == hash(case.layer)
    assert Dense(2, 3) == Dense(2, 3) != Dense(2, 3, bias=False)
    assert Sequential(Dense(2, 3), ReLU()) == Sequential(Dense(2, 3), ReLU())
    assert Conv2d(1, 2, 3) == Conv2d(1, 2, (3, 3))


@pytest.mark.parametrize(
    ("layer", "fan"), [(Dense(400, 50), 400), (Conv2d(40, 60, (3, 5), groups=2), 300)]
)
def test_default_initialisation_is_uniform_by_the_fan(layer: Any, fan: int) -> None:
    params = layer.init(rng())
    for array in params.values():
        assert np.abs(array).max() <= fan**-0.5
    assert np.std(params["weight"]) == pytest.approx((3 * fan) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    ("layer", "fan"),
    [(Dense(400, 50, init="he"), 400), (Conv2d(40, 60, (3, 5), groups=2, init="he"), 300)],
)
def test_he_initialisation_is_normal(layer: Any, fan: int) -> None:
    params = layer.init(rng())
    assert not params["bias"].any()
    assert np.std(params["weight"]) == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert np.abs(params["weight"]).max() > 3 * (2 / fan) ** 0.5


def test_tables_start_normal_and_norms_neutral() -> None:
    assert np.std(Embedding(100, 50).init(rng())["table"]) == pytest.approx(1, rel=0.05)
    assert np.std(Position(100, 50).init(rng())["table"]) == pytest.approx(0.02, rel=0.05)
    params = LayerNorm(3).init(rng())
    assert params["scale"].tolist() == [1, 1, 1]
    assert params["shift"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("network", [MLP, CNN, TRANSFORMER], ids=["mlp", "cnn", "transformer"])
def test_names_go_there_and_back(network: Any) -> None:
    params = network.init(rng())
    flat = flatten(params)
    again = unflatten(flat)
    assert list(flatten(again)) == list(flat)
    assert tree_map(lambda a, b: a is b, params, again) == tree_map(lambda _: True, params)
    shuffled = unflatten(dict(sorted(flat.items(), reverse=True)))
    assert list(flatten(shuffled)) == list(flat)


def test_the_order_of_names_is_numeric_and_that_of_the_layers() -> None:
    network = Sequential(*(layer for _ in range(6) for layer in (Dense(2, 2, bias=False), ReLU())))
    names = [f"{i}.weight" for i in range(0, 12, 2)]
    assert list(flatten(network.init(rng()))) == names


def test_flatten_keeps_none_and_drops_what_is_empty() -> None:
    assert flatten({"a": {"b": None, "c": {}}, "d": {}}) == {"a.b": None}
    assert flatten({}) == unflatten({}) == {}


@pytest.mark.parametrize("key", ["", "a.b", 1])
def test_flatten_refuses_keys_that_make_no_name(key: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key!r} is a key")):
        flatten({key: 1.0})


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a")])
def test_unflatten_refuses_names_that_collide(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"'{names[1]}' is in a place"):
        unflatten(dict.fromkeys(names, 1.0))


@pytest.mark.parametrize("name", PLACES)
def test_convert_there_and_back(name: str) -> None:
    params = {**CNN.init(rng()), "none": None, "whole": {"number": np.asarray([1, 2])}}
    with place(name) as here:
        moved = convert(params, here.xp, device=here.device)
        like = here.xp.asarray(1.0, device=here.device)
        wide = convert(moved, like, dtype=here.xp.float64)
        assert moved["none"] is None
        del moved["none"], wide["none"], params["none"]
        assert leaves(tree_map(lambda a: a.dtype == here.xp.float64, wide)) == [True] * 6
        for one in (here.back(moved), here.back(wide)):
            assert all(map(np.array_equal, leaves(one), leaves(params)))
        if not name.endswith("device1"):  # array-api-strict lets nothing off its other devices
            again = convert(moved, np)
            assert all(map(np.array_equal, leaves(again), leaves(params)))
            assert {leaf.dtype.name for leaf in leaves(again)} == {"float32", "int64"}


def test_convert_copies() -> None:
    params = {"w": np.zeros(2, np.float32)}
    torch = pytest.importorskip("torch")
    for like in (np, torch, torch.ones(1)):
        copied = convert(params, like)
        copied["w"] += 1
        assert not params["w"].any()


@pytest.mark.parametrize("name", ["jax.numpy", "torch", "array_api_strict"])
def test_convert_takes_plain_modules(name: str) -> None:
    xp = pytest.importorskip(name)
    moved = convert(Dense(2, 2).init(rng()), importlib.import_module(name))
    assert moved["weight"].dtype == xp.float32


def test_training_learns() -> None:
    network = Sequential(Dense(2, 16, init="he"), Tanh(), Dense(16, 2))
    x = rng().standard_normal((64, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    params = network.init(rng())
    losses = []
    for _ in range(300):
        loss, grads = value_and_grad(network, CrossEntropy(), params, x, y)
        params = tree_map(lambda p, g: p - 0.5 * g, params, grads)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0, 3), "inputs is 0; allowed: an integer, at least 1"),
        (lambda: Dense(3, 2.0), "outputs is 2.0; allowed: an integer"),  # type: ignore[arg-type]
        (lambda: Dense(3, True), "outputs is True; allowed: an integer"),
        (lambda: Dense(3, 2, init="xavier"), "init is 'xavier'; allowed: default, he"),  # type: ignore[arg-type]
        (
            lambda: Conv2d(4, 6, 3, groups=3),
            "groups is 3; allowed: a divisor of inputs, which is 4",
        ),
        (lambda: Conv2d(4, 6, 3, groups=4), "groups is 4; allowed: a divisor of outputs"),
        (lambda: Conv2d(4, 6, 3, groups=0), "groups is 0; allowed: an integer, at least 1"),
        (lambda: Conv2d(4, 6, 0), "kernel is 0; allowed"),
        (lambda: Conv2d(4, 6, 3, stride=(1, 0)), "stride is 0; allowed"),
        (lambda: Conv2d(4, 6, 3, padding=-1), "padding is -1; allowed: an integer, at least 0"),
        (lambda: Conv2d(4, 6, (3, 3, 3)), "kernel is (3, 3, 3); allowed: one integer"),  # type: ignore[arg-type]
        (lambda: Conv2d(4, 6, 3, init=None), "init is None; allowed: default, he"),  # type: ignore[arg-type]
        (lambda: Attention(6, 4), "heads is 4; allowed: a divisor of width, which is 6"),
        (lambda: Attention(6, 2, init="x"), "init is 'x'; allowed: default, he"),  # type: ignore[arg-type]
        (lambda: LayerNorm(0), "size is 0; allowed"),
        (lambda: LayerNorm(2, eps=-1.0), "eps is -1.0; allowed: 0 or more"),
        (lambda: Embedding(0, 2), "tokens is 0; allowed"),
        (lambda: Position(2, 0), "width is 0; allowed"),
        (lambda: Flatten(0), "keep is 0; allowed"),
        (lambda: MaxPool2d(0), "size is 0; allowed"),
        (lambda: LeakyReLU(1.0), "leak is 1.0; allowed: a number in [0, 1)"),
    ],
)
def test_constructors_name_the_value_and_what_is_allowed(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequential([Dense(1, 1)]), "layer 0 of Sequential is [Dense("),  # type: ignore[arg-type]
        (lambda: Sequential(ReLU(), Tanh), "layer 1 of Sequential is <class"),  # type: ignore[arg-type]
        (lambda: Residual(None), "what is inside Residual is None; allowed: a layer"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_layer_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (Dense(3, 2), (4, 5), "(..., 3)"),
        (Dense(3, 2), (), "(..., 3)"),
        (Conv2d(3, 2, 3), (4, 8, 8, 1), "(n, height, width, 3)"),
        (Conv2d(3, 2, 3), (8, 8, 3), "(n, height, width, 3)"),
        (Conv2d(3, 2, (3, 5), padding=1), (1, 2, 2, 3), "height and width of at least 1 and 3"),
        (LayerNorm(3), (2, 4), "(..., 3)"),
        (Attention(4, 2), (2, 4), "(n, steps, 4)"),
        (Attention(4, 2), (2, 3, 5), "(n, steps, 4)"),
        (Position(3, 4), (2, 4, 4), "(n, at most 3, 4)"),
        (Position(3, 4), (2, 3, 5), "(n, at most 3, 4)"),
        (Flatten(3), (2, 3), "at least 3 axes"),
        (Mean(), (2, 3), "(n, ..., features), with at least one position in between"),
        (Mean(), (2, 0, 3), "(n, ..., features), with at least one position in between"),
        (MaxPool2d(2), (2, 4, 4), "(n, height, width, channels)"),
        (MaxPool2d(3), (2, 4, 2, 1), "height and width of at least 3"),
    ],
)
def test_inputs_of_the_wrong_shape_are_named(layer: Any, shape: Any, expected: str) -> None:
    message = f"{type(layer).__name__} got an input of shape {shape}; expected: {expected}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.forward(layer.init(rng()), np.ones(shape))


def test_other_inputs_that_are_refused() -> None:
    layer = Embedding(3, 2)
    with pytest.raises(ValueError, match="tokens of dtype float64; expected: an integer dtype"):
        layer.forward(layer.init(rng()), np.ones(3))
    residual = Residual(Dense(3, 2))
    with pytest.raises(ValueError, match=re.escape("Residual got (4, 2) for an input (4, 3)")):
        residual.forward(residual.init(rng()), np.ones((4, 3)))
    with pytest.raises(ValueError, match=re.escape("targets have shape (4, 1); expected: (4,)")):
        CrossEntropy().value(np.ones((4, 3)), np.ones((4, 1), np.int64))
    with pytest.raises(ValueError, match="targets of dtype float64; expected: an integer dtype"):
        CrossEntropy().value(np.ones((4, 3)), np.ones(4))
    with pytest.raises(ValueError, match=re.escape("targets have shape (4,); expected: (4, 1)")):
        SquaredError().value(np.ones((4, 1)), np.ones(4))


def test_an_embedding_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = Embedding(5, 3), rng().integers(0, 5, (4, 6))
    dy = rng().standard_normal((4, 6, 3))
    whole = layer.pullback({}, tokens, dy)[1]["table"]
    monkeypatch.setattr("nullport_arrays.layers._embedding.CHUNK", 37)
    assert np.allclose(layer.pullback({}, tokens, dy)[1]["table"], whole, rtol=1e-13)


def test_of_equal_pixels_the_first_is_the_largest() -> None:
    layer, x = MaxPool2d(2), np.ones((1, 2, 2, 1))
    _, cache = layer.forward({}, x)
    dx, _ = layer.pullback({}, cache, np.full((1, 1, 1, 1), 3.0))
    assert dx.ravel().tolist() == [3, 0, 0, 0]


def test_an_integer_input_after_a_reshape_has_no_cotangent() -> None:
    network = Sequential(Flatten(keep=2), Embedding(5, 3))
    params, x = network.init(rng()), np.ones((2, 3, 1), np.int64)
    y, cache = network.forward(params, x)
    dx, grads = network.pullback(params, cache, np.ones_like(y))
    assert dx is None
    assert list(flatten(grads)) == ["1.table"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 300])
def test_a_convolution_in_several_chunks(
    monkeypatch: pytest.MonkeyPatch, groups: int, chunk: int
) -> None:
    layer, x = (
        Conv2d(4, 6, 3, stride=2, padding=1, groups=groups),
        rng().standard_normal((5, 6, 5, 4)),
    )
    params = layer.init(rng())

    def run() -> list[Any]:
        y, cache = layer.forward(params, x)
        dx, grads = layer.pullback(params, cache, np.sin(y))
        return [y, dx, *leaves(grads), layer.pushforward(params, cache, np.cos(x), params)]

    whole = run()
    monkeypatch.setattr("nullport_arrays.layers._conv.CACHED", chunk)
    assert all(np.allclose(a, b, rtol=1e-12) for a, b in zip(run(), whole, strict=True))
