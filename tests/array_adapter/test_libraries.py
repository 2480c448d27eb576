"""Which arrays nullport computes with: the tables of the page on arrays, the error for others."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_adapter.test_callables import EXACT, Net
from helpers.installed import installed
from helpers.slow import slow

from nullport_arrays import Adam, _libraries, from_callables, from_layers, from_network, teleport
from nullport_arrays.layers import Dense, Sequential, SquaredError, Tanh, convert

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "arrays.md").read_text("utf-8")
SECTION = PAGE.split("## Which arrays")[1].split("\n## ")[0]
NATIVE, CONVERTED = (
    [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| library"))
    ]
    for table in SECTION.split("Another library")
)
NAMESPACES = {"jax": "jax.numpy", "array-api-strict": "array_api_strict"}


def test_the_table_is_what_errors_name() -> None:
    assert tuple(row[0] for row in NATIVE) == _libraries.NATIVE
    assert {row[0] for row in CONVERTED} >= {"tensorflow", "paddle", "mlx", "tinygrad", "ndonnx"}


@pytest.mark.parametrize("name", _libraries.NATIVE)
def test_native(name: str) -> None:
    slow(name == "jax", "a minute, operation by operation")
    module = NAMESPACES.get(name, f"array_api_compat.{name}")
    if not installed(name.replace("-", "_")):
        pytest.skip(f"{name} is not installed")
    try:
        xp = importlib.import_module(module)
        xp.zeros(3)
    except Exception as e:  # cupy without a GPU
        pytest.skip(f"{name} has no device: {e}")
    net = Net(xp)
    graph = net.graph(cotangents=net.cotangents)
    report = teleport(graph, EXACT)
    assert report.accepted
    assert all(type(w) is type(net.x) for w in graph.params.values())
    plain = Net()
    reference = plain.graph(cotangents=plain.cotangents)
    teleport(reference, EXACT)
    close = 1e-9 if net.x.dtype == xp.float64 else 1e-3
    for key, w in graph.params.items():
        found = np.asarray(w.get() if name == "cupy" else w)
        np.testing.assert_allclose(found, reference.params[key], rtol=close, atol=close)


@pytest.mark.parametrize(("library", "load", "into", "back"), CONVERTED, ids=lambda row: row)
def test_converted(library: str, load: str, into: str, back: str) -> None:
    if find_spec(library) is None or not installed(load.split()[1]):
        pytest.skip(f"{library} is not installed")
    script = Path(__file__).parents[1] / "helpers" / "foreign.py"
    # The interpreter of tinygrad needs no compiler.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "DEV": "PYTHON", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), load, into, back],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"computed by {library}" in done.stdout


def test_all_that_the_core_calls_is_asked_for() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "nullport").glob("*.py"))
    called = set(re.findall(r"(?:\bxp|namespace\([^()]*\))\.([a-z_]+)\(", source))
    assert called == {*_libraries.NEEDED}
    linear = set(re.findall(r"(?:\bxp|namespace\([^()]*\))\.linalg\.([a-z_]+)\(", source))
    assert linear == {*_libraries.NEEDED_LINALG}


class Foreign(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a library without a namespace of the standard."""

    shape, dtype, ndim, size = (
        property(lambda a, n=n: getattr(a.data, n)) for n in ("shape", "dtype", "ndim", "size")
    )
    T = property(lambda a: type(a)(a.data.T))

    def __init__(self, data: Any) -> None:
        self.data = np.asarray(getattr(data, "data", data) if isinstance(data, Foreign) else data)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **given: Any) -> Any:
        bare = [a.data if isinstance(a, Foreign) else a for a in inputs]
        return type(self)(getattr(ufunc, method)(*bare, **given))


class Bare:
    """A namespace with NumPy's functions, but without linear algebra."""

    __name__ = "bare"

    def __getattr__(self, name: str) -> Any:
        if name == "linalg" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(np, name)


class Half(Foreign):
    """An array of a library whose namespace has no linear algebra."""

    device = "cpu"

    def __array_namespace__(self, api_version: Any = None) -> Any:
        return Bare()


class Broken(Foreign):
    """An array whose namespace cannot be had."""

    def __array_namespace__(self, api_version: Any = None) -> Any:
        msg = "no such version"
        raise ValueError(msg)


class Affine:
    def __init__(self, w: Any) -> None:
        self.W = w

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W

    def backward(self, dy: Any) -> Any:
        self.dW = self.x.T @ dy
        return dy @ self.W.T


def squared(outputs: Any, targets: Any) -> Any:
    return 0.0, outputs - targets


MAKERS = {
    "foreign": (Foreign, r"Foreign; allowed"),
    "half": (Half, r"Half, whose namespace lacks .*linalg\.diagonal.*; allowed"),
    "broken": (Broken, r"Broken, whose namespace .*no such version.*; allowed"),
    "masked": (np.ma.masked_array, r"numpy.*MaskedArray, whose operators are not.*; allowed"),
    "matrix": (lambda a: np.asmatrix(a), r"numpy.*matrix, whose operators are not.*; allowed"),
}
TABLE = r": an array of numpy, cupy, torch, jax, array-api-strict.*numpy\.asarray.*docs/arrays\.md"
every_maker = pytest.mark.parametrize(("make", "text"), MAKERS.values(), ids=MAKERS)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@every_maker
def test_foreign_weights_are_refused_by_name(make: Any, text: str) -> None:
    w = make(np.ones((4, 4)))
    with pytest.raises(TypeError, match="weight A is a .*" + text + TABLE):
        from_callables({"A": w}, inputs=dict, loss=len, cotangents=dict)
    with pytest.raises(TypeError, match=r"weight 0\.Affine\.W is a .*" + text + TABLE):
        from_layers([Affine(w), Affine(w)], squared, (w, w))
    network = Sequential(Dense(4, 4, bias=False), Tanh())
    with pytest.raises(TypeError, match=r"weight 0\.weight is a .*" + text + TABLE):
        from_network(network, SquaredError(), {"0": {"weight": w}}, (w, w))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@every_maker
@pytest.mark.parametrize("where", ["inputs", "cotangents", "gradients", "step", "loss"])
def test_foreign_values_are_refused_by_name(make: Any, text: str, where: str) -> None:
    net = Net()

    def changed(found: Any) -> Any:
        return {key: make(a) for key, a in found.items()}

    given: dict[str, Any] = {"cotangents": net.cotangents}
    what = {"inputs": "the input of W1", "cotangents": "a cotangent of W1", "step": "step for W1"}
    if where == "inputs":
        given["inputs"] = lambda w: changed(net.inputs(w))
    elif where == "cotangents":
        given["cotangents"] = lambda w: changed(net.cotangents(w))
    elif where == "gradients":
        given = {"gradients": lambda w: changed(net.gradients(w))}
    elif where == "step":
        given["optimizer_step"] = lambda g: {"W1": make(g["W1"])}
    else:
        given["loss"] = lambda w: make(net.loss(w))
        text = r"(float64\[\]|.*" + text + ")"
    named = what.get(where, "the gradient of W1" if where == "gradients" else "loss returned")
    with pytest.raises((TypeError, ValueError), match=named + " (is a )?.*" + text):
        teleport(net.graph(**given))


def test_libraries_are_not_mixed() -> None:
    torch = pytest.importorskip("torch")
    net = Net()
    text = "is an array of torch, others are of numpy; allowed: arrays of one library"
    inputs = {k: torch.asarray(a) for k, a in net.inputs(net.weights).items()}
    with pytest.raises(TypeError, match=f"the input of W1 {text}"):
        teleport(net.graph(inputs=lambda w: inputs, cotangents=net.cotangents))
    with pytest.raises(TypeError, match=f"what loss returned {text}"):
        teleport(net.graph(loss=lambda w: torch.asarray(0.0), cotangents=net.cotangents))
    weights = {**net.weights, "W2": torch.asarray(net.weights["W2"])}
    with pytest.raises(TypeError, match=f"weight W2 {text}"):
        from_callables(weights, inputs=net.inputs, loss=net.loss, cotangents=net.cotangents)


def test_layers_name_what_they_have_instead_of_a_weight() -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(ValueError, match=r"no layer has a weight \(layers: Affine; W of Affine is"):
        from_layers([Affine(rows)], squared, (np.ones((3, 2)), np.ones((3, 2))))

    class Elsewhere(Affine):
        def forward(self, x: Any) -> Any:
            return Foreign(x @ self.W)

    graph = from_layers([Elsewhere(np.ones((2, 2)))], squared, (np.ones((3, 2)), np.ones((3, 2))))
    with pytest.raises(
        TypeError, match=r"what Elsewhere\.forward made is a .*Foreign; allowed" + TABLE
    ):
        teleport(graph)


@pytest.mark.parametrize("samples", [5, 60])
@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1", "no_float64"])
def test_every_device_of_the_strict_library(device: str, samples: int) -> None:
    xp = pytest.importorskip("array_api_strict")
    try:
        place = xp.Device(device)
    except ValueError:
        pytest.skip(f"no {device}")
    draw = np.random.default_rng(0)

    def on(*shape: int) -> Any:
        return xp.asarray(draw.standard_normal(shape).astype(np.float32), device=place)

    x, y = on(samples, 8), on(samples, 2)
    network, rule = Sequential(Dense(8, 24), Tanh(), Dense(24, 2, bias=False)), Adam(1e-3)
    params = convert(network.init(draw), xp, device=place)
    graph = from_network(
        network, SquaredError(), params, (x, y), optimizer=rule, state=rule.init(params)
    )
    report = teleport(graph)
    assert report.accepted
    moved = graph.params["2"]["weight"]
    assert moved.dtype == xp.float32
    assert moved.device == place
    layer = next(row for row in report.layers if row.name == "2.weight")
    step = xp.matrix_transpose(moved - params["2"]["weight"])
    assert graph.params["0"]["weight"] is params["0"]["weight"]
    hidden, _ = Sequential(Dense(8, 24), Tanh()).forward({"0": params["0"], "1": {}}, x)
    size = xp.linalg.vector_norm
    change = float(size(hidden @ step) / size(hidden @ xp.matrix_transpose(params["2"]["weight"])))
    assert change <= layer.output_change_bound * 1.001 + 1e-6
