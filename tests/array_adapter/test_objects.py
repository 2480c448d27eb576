"""Lists of layer objects: conventions, what is left alone, and that nothing else is touched."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from array_adapter import handmade
from array_adapter.handmade import (
    Averaging,
    Columns,
    Dropout,
    Flattening,
    InPlace,
    Listed,
    Mapped,
    Mean,
    NoGradient,
    Scale,
    Stored,
    Tanh,
    squared,
)
from helpers.dense import null_projector

from nullport import TeleportConfig
from nullport_arrays import from_callables, from_layers, teleport

EXACT = TeleportConfig(projection="threshold", radius=0.3)
RNG = np.random.default_rng(11)
X, Y = RNG.standard_normal((5, 8)), RNG.standard_normal((5, 3))
ROWS = (Stored, Listed, Mapped, Averaging, NoGradient, Flattening)


def net(kind: Any) -> list[Any]:
    return [kind(0, 8, 14), Tanh(), kind(1, 14, 14), Tanh(), kind(2, 14, 3)]


def run(layers: list[Any], x: Any) -> Any:
    for layer in layers:
        returned = layer.forward(x)
        x = layer.output if returned is None else returned
    return x


def weight(layer: Any) -> Any:
    """Return the weight as (out, in)."""
    if hasattr(layer, "params"):
        params = layer.params
        return params["W"] if isinstance(params, dict) else params[0].T
    for name in ("weights", "kernel", "W"):
        if hasattr(layer, name):
            array = getattr(layer, name)
            return array if isinstance(layer, Columns) else array.T
    raise AssertionError(layer)


@pytest.mark.parametrize("loss", [squared, Mean()], ids=["function", "object"])
@pytest.mark.parametrize("kind", [*ROWS, Columns])
def test_loss_stays_and_weights_move_in_place(kind: Any, loss: Any) -> None:
    columns = kind is Columns
    x, y = (X.T.copy(), Y.T.copy()) if columns else (X, Y)
    layers = net(kind)
    before, arrays = squared(run(layers, x), y)[0], [weight(layer) for layer in layers[::2]]
    old = [w.copy() for w in arrays]
    report = teleport(from_layers(layers, loss, (x, y)), EXACT)
    assert report.accepted
    assert report.grad_norm_after > 1.1 * report.grad_norm_before
    assert abs(squared(run(layers, x), y)[0] - before) <= 1e-12 * before
    moved = [not np.array_equal(w, o) for w, o in zip(arrays, old, strict=True)]
    assert moved == [False, True, True]  # of views into the arrays that were there


def expected_move(layers: list[Any], place: int) -> Any:
    """Return the projected direction of a weight, by central differences of ||gradient||^2 / 2."""

    def objective(shift: Any) -> float:
        moved = copy.deepcopy(layers)
        weight(moved[place])[...] += shift
        out, total = run(moved, X), 0.0
        dy = squared(out, Y)[1]
        for layer in reversed(moved):
            returned = layer.backward(dy)
            if isinstance(layer, Averaging):
                total += float(np.sum(layer.dW**2) + np.sum(layer.db**2))
            elif isinstance(layer, Listed):
                total += float(np.sum(layer.grads[0] ** 2) + np.sum(layer.grads[1] ** 2))
            dy = returned[0] if isinstance(returned, tuple) else returned
        return total / 2

    shape, step = weight(layers[place]).shape, 1e-5
    found = np.zeros(shape)
    for index in np.ndindex(*shape):
        unit = np.zeros(shape)
        unit[index] = step
        found[index] = (objective(unit) - objective(-unit)) / (2 * step)
    return found


@pytest.mark.parametrize("kind", [Listed, Averaging])
def test_direction(kind: Any) -> None:
    """Also where the layers' gradients are not those of the loss: theirs count."""
    layers = net(kind)
    expected, old = expected_move(layers, 2), weight(layers[2]).copy()
    inputs = run(layers[:2], X)
    config = TeleportConfig(projection="threshold", radius=1e-3, max_loss_change=1.0, bias=False)
    assert teleport(from_layers(layers, squared, (X, Y)), config).accepted
    change, expected = weight(layers[2]) - old, expected @ null_projector(inputs)
    cosine = np.sum(expected * change) / np.linalg.norm(expected) / np.linalg.norm(change)
    assert cosine > 1 - 1e-8


def test_all_conventions_give_the_same_move() -> None:
    moves = []
    for kind in (Stored, Listed, Mapped, Flattening):
        layers = net(kind)
        teleport(from_layers(layers, squared, (X, Y)), EXACT)
        moves.append([weight(layer) for layer in layers[::2]])
    for other in moves[1:]:
        for a, b in zip(moves[0], other, strict=True):
            assert np.allclose(a, b, rtol=0, atol=1e-9)


def test_agrees_with_callables() -> None:
    layers = net(NoGradient)
    names = {"0": layers[0].kernel, "1": layers[2].kernel, "2": layers[4].kernel}

    def states(w: Any) -> list[Any]:
        first = np.tanh(X @ w["0"])
        second = np.tanh(first @ w["1"])
        return [X, first, second, second @ w["2"]]

    def cotangents(w: Any) -> Any:
        _, first, second, out = states(w)
        last = squared(out, Y)[1]
        middle = (last @ w["2"].T) * (1 - second**2)
        return {"2": last, "1": middle, "0": (middle @ w["1"].T) * (1 - first**2)}

    graph = from_callables(
        {key: w.copy() for key, w in names.items()},
        inputs=lambda w: dict(zip("012", states(w), strict=False)),
        cotangents=cotangents,
        loss=lambda w: squared(states(w)[3], Y)[0],
    )
    teleport(graph, EXACT)
    teleport(from_layers(layers, squared, (X, Y)), EXACT)
    for key, w in names.items():
        assert np.allclose(w, graph.params[key], rtol=0, atol=1e-9)


def snapshot(layers: list[Any]) -> list[Any]:
    return copy.deepcopy([vars(layer) for layer in layers])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.random.Generator):
        return bool(a.bit_generator.state == b.bit_generator.state)
    return bool(np.array_equal(a, b))


def noisy() -> list[Any]:
    return [
        Listed(0, 8, 14),
        InPlace(),
        Dropout(own=True),
        Mapped(1, 14, 14),
        Dropout(own=False),
        Tanh(),
        Stored(2, 14, 3),
    ]


def test_nothing_but_weights_changes() -> None:
    """Caches, gradients written in place, generators, the batch: bit for bit as before."""
    layers, x, y = noisy(), X.copy(), Y.copy()
    dy = squared(run(layers, x.copy()), y)[1]
    for layer in reversed(layers):
        returned = layer.backward(dy)
        dy = layer.dinputs if returned is None else returned
    before, state = snapshot(layers), np.random.get_state()  # noqa: NPY002
    graph = from_layers(layers, squared, (x, y), guard=(x, y))
    report = teleport(graph, EXACT)
    assert report.accepted
    assert abs(report.loss_after - report.loss_before) <= 1e-12  # the same masks in every pass
    after = snapshot(layers)
    moved = [graph.parameters.index(p) for p in graph.parameters if p.movable]
    assert moved
    for old, new in zip(before, after, strict=True):
        for key in ("params", "weights", "biases"):
            old.pop(key, None)
            new.pop(key, None)
        assert same(old, new)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("fails", ["forward", "backward"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_bit_identical_after_an_error(fails: str, call: int) -> None:
    layers = noisy()
    calls = 0
    method = getattr(layers[5], fails)

    def breaking(array: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            msg = "out of order"
            raise RuntimeError(msg)
        return method(array)

    run(layers, X.copy())
    before = snapshot(layers)
    setattr(layers[5], fails, breaking)
    with pytest.raises(RuntimeError, match="out of order"):
        teleport(from_layers(layers, squared, (X, Y)), EXACT)
    delattr(layers[5], fails)
    assert same(before, snapshot(layers))


def test_refused_is_bit_identical() -> None:
    layers = net(Listed)
    run(layers, X)
    before = snapshot(layers)
    graph = from_layers(layers, squared, (X, Y), optimizer_step=lambda gs: [1e6 * g for g in gs])
    report = teleport(graph, TeleportConfig(objective="grad_norm", radius=0.3))
    assert not report.accepted
    assert same(before, snapshot(layers))


def test_what_is_no_product_is_left_alone() -> None:
    layers = [Stored(0, 8, 14), Tanh(), Scale(14), Listed(1, 14, 3)]
    before, scale = squared(run(layers, X), Y)[0], layers[2].W.copy()
    report = teleport(from_layers(layers, squared, (X, Y)), EXACT)
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["2.Scale.W"].startswith("used by a layer that is no product of its input")
    assert reasons["3.Listed.0"] == ""
    assert np.array_equal(layers[2].W, scale)
    assert abs(squared(run(layers, X), Y)[0] - before) <= 1e-12 * before


def test_shared_array_must_be_null_for_all_its_inputs() -> None:
    first, second, third = (NoGradient(s, 14, 14) for s in (0, 1, 2))
    third.kernel = first.kernel
    x, y = RNG.standard_normal((3, 14)), RNG.standard_normal((3, 14))
    layers = [first, Tanh(), second, Tanh(), third]
    before = squared(run(layers, x), y)[0]
    report = teleport(from_layers(layers, squared, (x, y)), EXACT)
    assert report.accepted
    assert [layer.null_dim for layer in report.layers] == [8, 11]
    assert abs(squared(run(layers, x), y)[0] - before) <= 1e-12 * before


class Lazy:
    forward = None


BAD: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no layer": ([Lazy()], squared, TypeError, r"layer 0 is a Lazy without forward\(\)"),
    "no weight": ([Tanh()], squared, ValueError, r"no layer has a weight \(layers: Tanh\)"),
    "loss": (net(Listed), 3, TypeError, "loss is a int; allowed: a function of"),
    "loss of another kind": (net(Listed), Tanh(), TypeError, "loss is a Tanh; allowed"),
}


@pytest.mark.parametrize(("layers", "loss", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(layers: Any, loss: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        from_layers(layers, loss, (X, Y))


def test_longdouble_is_refused() -> None:
    if np.dtype(np.longdouble) == np.float64:
        pytest.skip("no longdouble of its own")
    layers = net(Listed)
    layers[2].params[0] = layers[2].params[0].astype(np.longdouble)
    with pytest.raises(TypeError, match=r"weight 2\.Listed\.0 holds float\d+; allowed: float64, "):
        from_layers(layers, squared, (X, Y))


def test_read_only_weights() -> None:
    layers = net(Listed)
    layers[0].params[0].flags.writeable = False
    with pytest.raises(ValueError, match=r"0\.Listed\.0 is a ndarray that cannot be written into"):
        from_layers(layers, squared, (X, Y))


def test_a_layer_that_returns_nothing() -> None:
    layers = net(Listed)
    layers[1].forward = lambda x: None  # type: ignore[method-assign]
    layers[1].out = None
    with pytest.raises(TypeError, match=r"Tanh\.forward returned NoneType; allowed: an array"):
        teleport(from_layers(layers, squared, (X, Y)), EXACT)


def test_every_convention_is_used() -> None:
    kinds = {k for k in vars(handmade).values() if isinstance(k, type) and hasattr(k, "backward")}
    assert {*ROWS, Columns, Tanh, Scale, Dropout, InPlace, Mean} == kinds
