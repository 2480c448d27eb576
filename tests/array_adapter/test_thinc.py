"""thinc's layer graphs: the loss stays, and the model is otherwise as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector

thinc = pytest.importorskip("thinc.api")

from nullport import TeleportConfig  # noqa: E402
from nullport_arrays import from_thinc, teleport  # noqa: E402

EXACT = TeleportConfig(projection="threshold", radius=0.3)
RNG = np.random.default_rng(2)
X = RNG.standard_normal((8, 20)).astype(np.float32)
Y = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 8)]


def cross_entropy(guesses: Any, truths: Any) -> tuple[Any, Any]:
    return -np.mean(np.sum(truths * np.log(guesses), axis=-1)), (guesses - truths) / len(guesses)


def squared(guesses: Any, truths: Any) -> tuple[Any, Any]:
    error = guesses - truths
    return np.mean(error**2), 2 * error / error.size


def initialised(*layers: Any) -> Any:
    model = thinc.chain(*layers)
    thinc.fix_random_seed(0)
    model.initialize(X, Y)
    rng = np.random.default_rng(4)
    for node in model.walk():
        for name in node.param_names:
            w = node.get_param(name)
            scale = w.shape[-1] ** -0.5 if name == "W" else 0.1
            noise = scale * rng.standard_normal(w.shape)
            node.set_param(name, (noise if name != "G" else 1 + noise).astype(np.float32))
    return model


MODELS = {
    "relu-gelu-maxout": lambda: initialised(
        thinc.Relu(32), thinc.Gelu(32), thinc.Maxout(32, nP=3), thinc.Linear(4)
    ),
    "residual-norm": lambda: initialised(
        thinc.Mish(32, normalize=True), thinc.residual(thinc.Gelu(32)), thinc.Linear(4)
    ),
    "swish-softmax": lambda: initialised(thinc.Swish(24), thinc.Swish(24), thinc.Softmax(4)),
    "dropout": lambda: initialised(
        thinc.Relu(32, dropout=0.2), thinc.Maxout(32, nP=2, dropout=0.2), thinc.Linear(4)
    ),
}


def predict(model: Any, seed: int = 0) -> Any:
    np.random.seed(seed)  # noqa: NPY002 - thinc's dropout draws from it
    return model.begin_update(X)[0]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_loss_stays_and_gradient_grows(make: Any) -> None:
    model = make()
    loss = cross_entropy if model.name.endswith("softmax") else squared
    np.random.seed(0)  # noqa: NPY002
    before = loss(predict(model), Y)[0]
    np.random.seed(0)  # noqa: NPY002
    report = teleport(from_thinc(model, loss, (X, Y)), EXACT)
    assert report.accepted
    assert report.grad_norm_after > 1.1 * report.grad_norm_before
    after = loss(predict(model), Y)[0]
    assert abs(after - before) <= 1e-5 * before
    moved = [layer.name for layer in report.layers if layer.moved]
    assert len(moved) == len([layer for layer in report.layers if layer.kind]) - 1


def test_direction() -> None:
    """Against central differences of half the squared norm of thinc's own gradients."""
    model = initialised(thinc.Gelu(16), thinc.Mish(14), thinc.Linear(4))
    for node in model.walk():
        node.ops = thinc.NumpyOps(use_blis=False)  # BLIS takes float32 alone
        for name in node.param_names:
            node.set_param(name, node.get_param(name).astype(np.float64))
    x, y = X.astype(np.float64), Y.astype(np.float64)
    node = list(model.walk())[2]
    inputs = list(model.walk())[1].predict(x)

    def objective(w: Any) -> float:
        node.set_param("W", w)
        outputs, backprop = model.begin_update(x)
        backprop(squared(outputs, y)[1])
        total = 0.0
        for other in model.walk():
            for name in other.grad_names:
                total += float(np.sum(other.get_grad(name) ** 2)) / 2
                other.set_grad(name, np.zeros_like(other.get_grad(name)))
        return total

    start, step = node.get_param("W"), 1e-4
    expected = np.zeros_like(start)
    for index in np.ndindex(*start.shape):
        unit = np.zeros_like(start)
        unit[index] = step
        expected[index] = (objective(start + unit) - objective(start - unit)) / (2 * step)
    expected = expected @ null_projector(inputs)
    node.set_param("W", start)
    config = TeleportConfig(projection="threshold", radius=1e-3, max_loss_change=1.0)
    assert teleport(from_thinc(model, squared, (x, y)), config).accepted
    change = node.get_param("W") - start
    cosine = np.sum(expected * change) / np.linalg.norm(expected) / np.linalg.norm(change)
    assert cosine > 0.9999  # thinc's GELU is an approximation with a derivative of its own


def test_everything_else_is_as_it_was() -> None:
    model = MODELS["dropout"]()
    outputs, backprop = model.begin_update(X)
    backprop(squared(outputs, Y)[1])
    gradients = [
        (node, name, node.get_grad(name), node.get_grad(name).copy())
        for node in model.walk()
        for name in node.grad_names
    ]
    held = [(node, node._params, node._func) for node in model.walk()]
    state = np.random.get_state()  # noqa: NPY002
    assert teleport(from_thinc(model, squared, (X, Y), guard=(X, Y)), EXACT).accepted
    assert gradients
    for node, name, array, copy in gradients:
        assert node.get_grad(name) is array
        assert np.array_equal(array, copy)
    assert all(node._params is p and node._func is f for node, p, f in held)
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002


def test_refused_is_bit_identical() -> None:
    model = MODELS["relu-gelu-maxout"]()
    arrays = [node.get_param(name) for node in model.walk() for name in node.param_names]
    copies = [a.copy() for a in arrays]
    graph = from_thinc(model, squared, (X, Y), optimizer_step=lambda gs: [1e6 * g for g in gs])
    assert not teleport(graph, TeleportConfig(objective="grad_norm", radius=0.3)).accepted
    after = [node.get_param(name) for node in model.walk() for name in node.param_names]
    assert all(a is b for a, b in zip(arrays, after, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = MODELS["relu-gelu-maxout"]()
    held = [(node, node._params, node._func) for node in model.walk()]

    def broken(guesses: Any, truths: Any) -> Any:
        msg = "no loss today"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="no loss today"):
        teleport(from_thinc(model, broken, (X, Y)), EXACT)
    assert all(node._params is p and node._func is f for node, p, f in held)


def test_thincs_own_loss_and_other_layers() -> None:
    model = initialised(thinc.Gelu(24), thinc.LayerNorm(), thinc.Softmax(4))
    loss = thinc.CategoricalCrossentropy()
    report = teleport(from_thinc(model, loss, (X, Y)), EXACT)
    assert report.accepted
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["2.layernorm.G"].startswith("used by a layer that does not begin with a product")
    assert reasons["3.softmax.W"] == ""


def test_trains_on() -> None:
    """An optimizer of thinc goes on from the moved weights."""
    model = MODELS["swish-softmax"]()
    assert teleport(from_thinc(model, cross_entropy, (X, Y)), EXACT).accepted
    optimizer, losses = thinc.Adam(0.01), []
    for _ in range(20):
        guesses, backprop = model.begin_update(X)
        loss, d_guesses = cross_entropy(guesses, Y)
        backprop(d_guesses)
        model.finish_update(optimizer)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_bad_arguments() -> None:
    model = thinc.Linear(4)
    with pytest.raises(ValueError, match="parameter W of linear is not set; allowed: a model"):
        from_thinc(model, squared, (X, Y))
    with pytest.raises(TypeError, match="model is a dict; allowed: an initialised thinc Model"):
        from_thinc({}, squared, (X, Y))
    with pytest.raises(TypeError, match="loss is a int; allowed: a function"):
        from_thinc(MODELS["dropout"](), 3, (X, Y))
    with pytest.raises(ValueError, match="has no parameters"):
        from_thinc(thinc.Dropout(0.1), squared, (X, Y))
