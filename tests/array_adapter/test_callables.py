"""Networks given as functions: orientations, biases, stacks, gradients alone, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import PLACES, error, place
from helpers.dense import null_projector
from hypothesis import given
from hypothesis import strategies as st

from nullport import TeleportConfig
from nullport_arrays import from_callables, teleport

EXACT = TeleportConfig(projection="threshold", radius=0.3)
SMALL = TeleportConfig(projection="threshold", radius=1e-3, max_loss_change=1.0)


class Net:
    """``tanh(tanh(x W1 + b1) W2) W3`` with half the mean squared error, by hand."""

    def __init__(self, xp: Any = np, *, samples: int = 5, width: int = 16, turned: bool = False):
        rng = np.random.default_rng(3)
        sizes = [(7, width), (width, width), (width, 3)]
        self.xp, self.turned = xp, turned
        self.x = xp.asarray(rng.standard_normal((samples, 7)))
        self.y = xp.asarray(rng.standard_normal((samples, 3)))
        self.weights = {
            f"W{i + 1}": xp.asarray(rng.standard_normal(s[::-1] if turned else s) / s[0] ** 0.5)
            for i, s in enumerate(sizes)
        }
        self.weights["b1"] = xp.asarray(rng.standard_normal(width) / 5)

    def matrix(self, w: Any, key: str) -> Any:
        return self.xp.matrix_transpose(w[key]) if self.turned else w[key]

    def states(self, w: Any) -> list[Any]:
        h1 = self.xp.tanh(self.x @ self.matrix(w, "W1") + w["b1"])
        h2 = self.xp.tanh(h1 @ self.matrix(w, "W2"))
        return [self.x, h1, h2, h2 @ self.matrix(w, "W3")]

    def loss(self, w: Any) -> Any:
        return self.xp.mean((self.states(w)[3] - self.y) ** 2) / 2

    def inputs(self, w: Any) -> Any:
        x, h1, h2, _ = self.states(w)
        return {"W1": x, "W2": h1, "W3": h2}

    def cotangents(self, w: Any) -> Any:
        xp = self.xp
        _, h1, h2, out = self.states(w)
        d3 = (out - self.y) / (out.shape[0] * out.shape[1])
        d2 = (d3 @ xp.matrix_transpose(self.matrix(w, "W3"))) * (1 - h2**2)
        d1 = (d2 @ xp.matrix_transpose(self.matrix(w, "W2"))) * (1 - h1**2)
        return {"W1": d1, "W2": d2, "W3": d3}

    def gradients(self, w: Any) -> Any:
        xp, xs, ds = self.xp, self.inputs(w), self.cotangents(w)
        found = {key: xp.matrix_transpose(xs[key]) @ ds[key] for key in ds}
        if self.turned:
            found = {key: xp.matrix_transpose(g) for key, g in found.items()}
        return {**found, "b1": xp.sum(ds["W1"], axis=0)}

    def graph(self, **options: Any) -> Any:
        orientation = "out_in" if self.turned else "in_out"
        given = {"inputs": self.inputs, "loss": self.loss, "orientation": orientation}
        return from_callables(self.weights, **{**given, **options})


def second(net: Net, key: str) -> Any:
    """Return the gradient of half the squared gradient norm by a weight, by central differences."""
    w, step = net.weights, 1e-5

    def objective(array: Any) -> float:
        gradients = net.gradients({**w, key: array}).values()
        return sum(float(np.sum(np.asarray(g) ** 2)) for g in gradients) / 2

    found = np.zeros(w[key].shape)
    for index in np.ndindex(*w[key].shape):
        unit = np.zeros(w[key].shape)
        unit[index] = step
        found[index] = (objective(w[key] + unit) - objective(w[key] - unit)) / (2 * step)
    return found


WAYS: dict[str, Callable[[Net], dict[str, Any]]] = {
    "cotangents": lambda net: {
        "cotangents": net.cotangents,
        "gradients": net.gradients,
        "biases": {"b1": "W1"},
    },
    "gradients": lambda net: {"gradients": net.gradients},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every_way
@pytest.mark.parametrize("turned", [False, True])
def test_direction(way: Any, turned: bool) -> None:
    net = Net(turned=turned)
    graph = net.graph(**way(net))
    assert teleport(graph, SMALL).accepted
    inputs = net.inputs(net.weights)
    for key in ("W2", "W3"):
        change, expected = graph.params[key] - net.weights[key], second(net, key)
        if not turned:
            change, expected = change.T, expected.T
        expected = expected @ null_projector(inputs[key])
        change, expected = change / np.linalg.norm(change), expected / np.linalg.norm(expected)
        assert np.linalg.norm(change - expected) < 1e-5, key
    assert np.array_equal(graph.params["W1"], net.weights["W1"])


@every_way
@pytest.mark.parametrize("name", [p for p in PLACES if not p.startswith("jax")])
def test_loss_stays(way: Any, name: str) -> None:
    with place(name) as here:
        if here.device is not None:
            pytest.skip("the network makes its arrays on the default device")
        net = Net(here.xp)
        graph = net.graph(**way(net))
        before = float(net.loss(net.weights))
        report = teleport(graph, EXACT)
        assert report.accepted
        assert abs(float(net.loss(graph.params)) - before) <= 1e-12 * before
        assert report.grad_norm_after > 1.1 * report.grad_norm_before
        assert [layer.name for layer in report.layers if layer.moved] == ["W2", "W3"]


def test_both_ways_agree() -> None:
    """The gradient differentiated as a whole gives what cotangents give, up to the difference."""
    net = Net()
    one = net.graph(cotangents=net.cotangents, gradients=net.gradients)
    two = net.graph(gradients=net.gradients)
    first, other = teleport(one, EXACT), teleport(two, EXACT)
    assert error(two.params, one.params) < 1e-5
    assert first.cost == pytest.approx(other.cost - 2 / 3)  # a replay is a whole gradient


def test_cotangents_alone_know_no_other_gradients() -> None:
    net = Net()
    graph = net.graph(cotangents=net.cotangents)
    report = teleport(graph, EXACT)
    known = net.gradients(net.weights)
    expected = sum(float(np.sum(known[key] ** 2)) for key in ("W1", "W2", "W3")) ** 0.5
    assert report.grad_norm_before == pytest.approx(expected, rel=1e-12)
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["b1"] == "used by a function whose input was not given"


def test_sequence_of_weights_and_shared_weight() -> None:
    """A weight used twice must be null for both inputs."""
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((12, 12)) / 4, rng.standard_normal((12, 12)) / 4
    x, y = rng.standard_normal((3, 12)), rng.standard_normal((3, 12))

    def states(weights: Any) -> list[Any]:
        first = np.tanh(x @ weights[0])
        middle = np.tanh(first @ weights[1])
        return [x, first, middle, middle @ weights[0]]

    def loss(weights: Any) -> Any:
        return np.mean((states(weights)[3] - y) ** 2)

    def cotangents(weights: Any) -> Any:
        _, first, middle, out = states(weights)
        last = 2 * (out - y) / out.size
        back = (last @ weights[0].T) * (1 - middle**2)
        return [[(back @ weights[1].T) * (1 - first**2), last], back]

    def inputs(weights: Any) -> Any:
        _, first, middle, _ = states(weights)
        return [[x, middle], first]

    graph = from_callables([w, v], inputs=inputs, cotangents=cotangents, loss=loss)
    report = teleport(graph, EXACT)
    assert report.accepted
    assert [layer.null_dim for layer in report.layers] == [6, 9]
    assert isinstance(graph.params, list)
    assert abs(loss(graph.params) - loss([w, v])) <= 1e-12


def test_stack_of_matrices() -> None:
    """Experts: W (experts, in, out), inputs (experts, samples, in)."""
    rng = np.random.default_rng(1)
    first, w = rng.standard_normal((6, 24)) / 2, rng.standard_normal((2, 12, 4)) / 3
    x, y = rng.standard_normal((5, 6)), rng.standard_normal((2, 5, 4))
    weights = {"first": first, "experts": w}

    def hidden(p: Any) -> Any:
        return np.tanh(x @ p["first"]).reshape(5, 2, 12).transpose(1, 0, 2)

    def loss(p: Any) -> Any:
        return np.sum((hidden(p) @ p["experts"] - y) ** 2)

    def cotangents(p: Any) -> Any:
        delta = 2 * (hidden(p) @ p["experts"] - y)
        back = (delta @ p["experts"].transpose(0, 2, 1)) * (1 - hidden(p) ** 2)
        return {"experts": delta, "first": back.transpose(1, 0, 2).reshape(5, 24)}

    graph = from_callables(
        weights,
        inputs=lambda p: {"first": x, "experts": hidden(p)},
        cotangents=cotangents,
        loss=loss,
    )
    report = teleport(graph, EXACT)
    assert report.accepted
    moved = {layer.name: layer.null_dim for layer in report.layers if layer.moved}
    assert moved == {"experts": 14}
    assert abs(loss(graph.params) - loss(weights)) <= 1e-12 * loss(weights)


def test_look_ahead_with_guard_and_optimizer() -> None:
    net, other, third = Net(), Net(), Net()
    rng = np.random.default_rng(9)
    for one in (other, third):
        one.x, one.y = rng.standard_normal(net.x.shape), rng.standard_normal(net.y.shape)
    graph = net.graph(
        cotangents=net.cotangents,
        gradients=net.gradients,
        guard=third.loss,
        others=other.gradients,
        optimizer_step=lambda g: {key: 0.05 * a for key, a in g.items() if a is not None},
    )
    report = teleport(graph, TeleportConfig(radius=0.1))
    stepped = {key: w - 0.05 * net.gradients(net.weights)[key] for key, w in net.weights.items()}
    assert report.guard_before == pytest.approx(float(third.loss(stepped)), rel=1e-12)
    assert report.layers[0].name == "W1"
    assert report.accepted
    assert report.layers[0].moved == pytest.approx(0.1)  # a first layer, by the others' gradient


@given(
    samples=st.integers(1, 6),
    width=st.integers(8, 14),
    turned=st.booleans(),
    by_gradient=st.booleans(),
)
def test_loss_stays_for_any_shape(
    samples: int, width: int, turned: bool, by_gradient: bool
) -> None:
    net = Net(samples=samples, width=width, turned=turned)
    way = WAYS["gradients" if by_gradient else "cotangents"]
    graph = net.graph(**way(net))
    report = teleport(graph, EXACT)
    change = abs(float(net.loss(graph.params)) - float(net.loss(net.weights)))
    assert change <= 1e-11 * float(net.loss(net.weights))
    assert report.accepted


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "orientation": (
        {"orientation": "columns"},
        "invalid orientation: 'columns'; allowed: 'in_out'",
    ),
    "orientation of nothing": ({"orientation": {"W9": "in_out"}}, "unknown weight 'W9'"),
    "bias of nothing": ({"biases": {"b1": "W9"}}, "unknown weight 'W9'; allowed: 'W1', 'W2'"),
    "neither": ({"cotangents": None}, "neither cotangents= nor gradients="),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    net = Net()
    with pytest.raises(ValueError, match=message):
        net.graph(**{"cotangents": net.cotangents, **options})


RETURNS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong orientation": ({"orientation": "out_in"}, "W1 has 7 features; allowed: 16"),
    "shape of a cotangent": (
        {"cotangents": lambda w: {"W1": np.ones((5, 16)), "W2": np.ones((5, 9)), "W3": None}},
        r"a cotangent of W2 has shape \(5, 9\), expected \(5, 16\)",
    ),
    "missing cotangent": (
        {"cotangents": lambda w: {"W1": np.ones((5, 16))}},
        "W2 has 1 inputs and 0 cotangents",
    ),
    "unknown name": ({"inputs": lambda w: {"W7": np.ones((5, 7))}}, "unknown weight 'W7'"),
    "too few": ({"inputs": lambda w: [np.ones((5, 7))]}, "inputs returned 1; allowed: a mapping"),
    "axes of an input": (
        {"inputs": lambda w: {"W1": np.ones(7)}},
        r"the input of W1 has shape \(7,\), the weight \(7, 16\)",
    ),
    "shape of a gradient": (
        {"gradients": lambda w: {key: np.ones(2) for key in w}},
        r"the gradient for W1 has shape \(2,\), expected that of the weight, \(7, 16\)",
    ),
    "loss": ({"loss": lambda w: np.ones(3)}, r"loss returned float64\[3\]; allowed: a scalar"),
    "no number": ({"loss": lambda w: "low"}, "loss returned 'low'; allowed: a scalar of floats"),
    "infinite": ({"loss": lambda w: float("inf")}, "the closure returned loss inf"),
}


@pytest.mark.parametrize(("options", "message"), RETURNS.values(), ids=RETURNS)
def test_bad_functions(options: dict[str, Any], message: str) -> None:
    net = Net()
    before = {key: w.copy() for key, w in net.weights.items()}
    graph = net.graph(**{"cotangents": net.cotangents, **options})
    with pytest.raises(ValueError, match=message):
        teleport(graph, EXACT)
    assert all(np.array_equal(net.weights[key], w) for key, w in before.items())
    assert all(a is b for a, b in zip(graph.weights(), net.weights.values(), strict=True))


def test_no_array() -> None:
    with pytest.raises(TypeError, match="weight W is a list; allowed: an array"):
        from_callables({"W": [1.0]}, inputs=dict, loss=float, cotangents=dict)


def odd(package: str, name: str) -> Any:
    """Return an array of floats in a format that is not allowed."""
    if package == "numpy":
        return np.ones((3, 2), getattr(np, name))
    library = pytest.importorskip(package)
    if package == "ml_dtypes":
        return np.ones((3, 2), getattr(library, name))
    return library.ones((3, 2), dtype=getattr(library, name))


FORMATS = [("numpy", "longdouble"), ("ml_dtypes", "bfloat16"), ("jax.numpy", "float8_e4m3fn")]


@pytest.mark.parametrize(("package", "name"), FORMATS, ids=[name for _, name in FORMATS])
def test_floats_of_another_format_are_refused(package: str, name: str) -> None:
    weight = odd(package, name)
    if weight.dtype == np.float64:
        pytest.skip("no longdouble of its own")
    message = rf"weight W holds {weight.dtype}.*; allowed: float64, float32, float16, bfloat16"
    with pytest.raises(TypeError, match=message):
        from_callables({"W": weight}, inputs=dict, loss=float, cotangents=dict)


@pytest.mark.parametrize(
    ("package", "name"),
    [("numpy", "float16"), ("numpy", "float32"), ("jax.numpy", "bfloat16"), ("torch", "bfloat16")],
)
def test_floats_that_are_allowed(package: str, name: str) -> None:
    graph = from_callables([odd(package, name)], inputs=list, loss=float, cotangents=list)
    assert [p.movable for p in graph.parameters] == [True]


def test_jvp_is_refused() -> None:
    net = Net()
    config = TeleportConfig(tangent="jvp", objective="grad_norm")
    with pytest.raises(RuntimeError, match="allowed: tangent='fd' or 'auto'"):
        teleport(net.graph(cotangents=net.cotangents), config)
