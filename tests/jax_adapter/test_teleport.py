"""The public functions: against torch, under jit, in every library's own idiom."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.slow import slow
from jax_adapter.models import Draw, mean_square

from nullport import TeleportConfig
from nullport._report import Cause
from nullport.lab.backends import available_backends, load_backend
from nullport_jax import __all__, inspect, teleport, teleport_nnx
from nullport_jax.lab.backend import BACKEND

Tree = Any
CONFIG = TeleportConfig(radius=0.2)
SIZES = (6, 40, 30, 3)


def network(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Tree:
    draw = Draw(seed)
    return [
        {"w": draw(a, b, scale=1 / a**0.5), "b": draw(b, scale=0.1)}
        for a, b in itertools.pairwise(sizes)
    ]


def loss_fn(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return mean_square(x @ params[-1]["w"] + params[-1]["b"], y)


def batch(n: int = 12, seed: int = 3) -> tuple[jax.Array, jax.Array]:
    draw = Draw(seed)
    return draw(n, SIZES[0]), draw(n, SIZES[-1])


def _flat(tree: Tree) -> Any:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("samples", "steps"), [(12, 1), (60, 1), (12, 3)], ids=["exact", "budget", "steps"]
)
@pytest.mark.parametrize("objective", ["grad_norm", "look_ahead", "decrease", "others", "amplify"])
def test_torch_agrees(objective: Any, samples: int, steps: int) -> None:
    """The same network, weights and batches: the same moves and the same report."""
    torch = pytest.importorskip("torch")
    import nullport_torch

    config = TeleportConfig(
        objective=objective, radius=0.2, steps=steps, tangent="jvp", max_loss_change=10.0
    )
    params, batches = network(), [batch(samples, seed) for seed in (3, 4, 5)]
    if objective == "amplify":  # of a scale that lacks
        params = jax.tree.map(lambda w: 0.3 * w, params)
    tx = optax.sgd(0.05)
    moved, report = teleport(
        loss_fn,
        params,
        *batches[0],
        guard=batches[1],
        others=batches[2],
        tx=tx,
        opt_state=tx.init(params),
        config=config,
    )
    layers: list[Any] = []
    for layer in params:
        linear = torch.nn.Linear(*layer["w"].shape, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(np.array(layer["w"].T))
        linear.bias.data = torch.from_numpy(np.array(layer["b"]))
        layers += [linear, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])

    def closure(b: Any) -> Callable[[], Any]:
        x, y = (torch.from_numpy(np.array(a)) for a in b)
        return lambda: (model(x) - y).square().mean()

    theirs = nullport_torch.teleport(
        model,
        closure(batches[0]),
        guard=closure(batches[1]),
        others=closure(batches[2]),
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        config=config,
    )
    for layer, linear in zip(moved, layers[::2], strict=True):
        assert np.abs(np.asarray(layer["w"]).T - linear.weight.detach().numpy()).max() <= 1e-10
        assert np.abs(np.asarray(layer["b"]) - linear.bias.detach().numpy()).max() <= 1e-10
    for field in dataclasses.fields(report):
        if field.name not in ("layers", "seconds", "cost", "tangent"):
            mine, other = getattr(report, field.name), getattr(theirs, field.name)
            expected = other if other is None else pytest.approx(other, rel=1e-9, abs=1e-12)
            assert mine == expected, field.name
    rows = {layer.name: layer for layer in theirs.layers}
    assert objective != "amplify" or any(layer.moved > 0 for layer in theirs.layers)
    for row in report.layers:
        other = rows[f"{2 * int(row.name[0])}.weight"]
        for name in ("in_features", "samples", "rank", "null_dim", "hold", "moved"):
            mine = float(getattr(row, name))
            assert mine == pytest.approx(float(getattr(other, name)), rel=1e-9), name
        assert float(row.output_change) == pytest.approx(other.output_change, rel=1e-6, abs=1e-12)


def test_the_loss_stays_and_the_gradient_grows() -> None:
    params, data = network(), batch()
    moved, report = teleport(loss_fn, params, *data, config=CONFIG)
    assert report.accepted
    assert report.reason == ""
    assert "accepted" in str(report)
    assert float(loss_fn(moved, *data)) == pytest.approx(float(loss_fn(params, *data)), rel=1e-12)
    grads = [jax.grad(loss_fn)(p, *data) for p in (params, moved)]
    norms = [float(np.linalg.norm(_flat(g))) for g in grads]
    assert [report.grad_norm_before, report.grad_norm_after] == pytest.approx(norms)
    assert norms[1] > norms[0]


@pytest.mark.parametrize("samples", [12, 60])
def test_a_jitted_teleport_compiles_once_and_says_the_same(samples: int) -> None:
    slow(samples == 60, "a minute of compiling")
    data, tx = batch(samples), optax.adam(0.01)
    traces = []

    @jax.jit
    def jitted(params: Tree, state: Any, radius: Any, data: Any) -> Any:
        traces.append(1)
        return teleport(
            loss_fn, params, *data, guard=data, others=data, tx=tx, opt_state=state, radius=radius
        )

    for seed, radius in ((0, 0.1), (1, 0.3)):
        params = network(seed=seed)
        state = tx.init(params)
        moved, report = jitted(params, state, radius, data)
        plain, expected = teleport(
            loss_fn, params, *data, guard=data, others=data, tx=tx, opt_state=state, radius=radius
        )
        np.testing.assert_allclose(_flat(moved), _flat(plain), rtol=1e-9, atol=1e-12)
        assert int(report.cause) == int(expected.cause)
        assert report.reason == expected.reason
        assert float(report.loss_after) == pytest.approx(float(expected.loss_after), rel=1e-10)
        assert [r.name for r in report.layers] == [r.name for r in expected.layers]
    assert len(traces) == 1


CAUSES = {
    Cause.LOSS: TeleportConfig(projection="none", radius=30.0, max_loss_change=0.0),
    Cause.INFINITE: CONFIG,
    Cause.STILL: TeleportConfig(include=("nothing",)),
}


@pytest.mark.parametrize("cause", CAUSES, ids=lambda c: c.name.lower())
@pytest.mark.parametrize("jitted", [False, True])
def test_refused_moves_are_undone_bit_for_bit(cause: Cause, jitted: bool) -> None:
    params, (x, y) = network(), batch()
    x = x * jnp.inf if cause == Cause.INFINITE else x

    def run(params: Tree) -> Any:
        return teleport(loss_fn, params, x, y, config=CAUSES[cause])

    moved, report = (jax.jit(run) if jitted else run)(params)
    assert report.cause == cause
    assert not report.accepted
    assert (_flat(moved) == _flat(params)).all()


def test_inspect_lists_every_weight() -> None:
    rows = inspect(loss_fn, network(), *batch(), config=TeleportConfig(radius=0.1))
    assert [row.name for row in rows] == ["0.w", "1.w", "2.w"]
    assert [int(row.null_dim) for row in rows] == [7, 29, 19]
    assert rows[0].reason  # a first layer


def test_aux_and_float32() -> None:
    params = jax.tree.map(lambda a: a.astype(jnp.float32), network())
    data = tuple(a.astype(jnp.float32) for a in batch())

    def with_aux(params: Tree, *data: Any) -> Any:
        return loss_fn(params, *data), {"anything": data[0].sum()}

    moved, report = teleport(with_aux, params, *data, has_aux=True, config=CONFIG)
    assert report.accepted
    assert float(loss_fn(moved, *data)) == pytest.approx(float(loss_fn(params, *data)), rel=1e-5)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(moved))


def test_without_double_precision_nothing_warns() -> None:
    """JAX has no float64 unless it is asked for; the Gram matrix is then made in float32."""
    jax.config.update("jax_enable_x64", False)
    params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float32)), network())
    data = tuple(jnp.asarray(np.asarray(a, np.float32)) for a in batch(60))
    moved, report = jax.jit(lambda p: teleport(loss_fn, p, *data))(params)
    assert np.isfinite(_flat(moved)).all()
    assert np.isfinite(report.loss_after)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loss": lambda p, x, y: x @ p[0]["w"]}, "expected a scalar float"),
        ({"params": {"n": jnp.arange(3)}}, "none of them of floats"),
        ({"loss": lambda p, x, y: (p[0]["w"] ** 2).sum()}, "no weight of the model is used by"),
    ],
    ids=["no scalar", "no floats", "no linear map"],
)
def test_bad_input(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        teleport(given.get("loss", loss_fn), given.get("params", network()), *batch())


def test_an_equinox_module_under_its_own_jit() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(6, 3, 30, 2, key=jax.random.key(0), dtype=jnp.float64)
    data = batch()

    def loss(model: Any, x: Any, y: Any) -> Any:
        return mean_square(jax.vmap(model)(x), y)

    moved, report = eqx.filter_jit(lambda m: teleport(loss, m, *data, config=CONFIG))(model)
    assert report.accepted
    assert float(loss(moved, *data)) == pytest.approx(float(loss(model, *data)), rel=1e-12)
    assert moved.activation is model.activation


def test_an_nnx_module_in_place() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            kinds = {"rngs": rngs, "param_dtype": jnp.float64}
            self.first, self.last = nnx.Linear(6, 40, **kinds), nnx.Linear(40, 3, **kinds)
            self.norm, self.drop = nnx.BatchNorm(40, **kinds), nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))

    model = Net(nnx.Rngs(0))
    # flax keeps statistics in single precision, and warns when it adds others to them.
    statistics = nnx.state(model, nnx.BatchStat)
    nnx.update(model, jax.tree.map(lambda a: a.astype(jnp.float64), statistics))
    before = nnx.split(nnx.clone(model), nnx.Param, ...)
    loss = lambda m, x, y: mean_square(m(x), y)  # noqa: E731
    report = teleport_nnx(model, loss, *batch(), config=CONFIG)
    assert report.accepted, report.reason
    _, params, rest = nnx.split(model, nnx.Param, ...)
    np.testing.assert_array_equal(_flat(_plain(rest)), _flat(_plain(before[2])))
    assert (_flat(params) != _flat(before[1])).any()
    copy = {"copy": True} if "copy" in signature(nnx.merge).parameters else {}
    copied = [nnx.merge(before[0], p, before[2], **copy) for p in (before[1], params)]
    losses = [float(loss(model, *batch())) for model in copied]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert float(report.loss_before) == pytest.approx(losses[0], rel=1e-12)


def _plain(state: Any) -> Any:
    """Return what can be compared: random keys as their data."""
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, state)


def test_public_names() -> None:
    assert __all__ == [
        "TeleportingState",
        "inspect",
        "register_linear",
        "teleport",
        "teleport_nnx",
        "teleporting",
    ]
    assert "jax" in available_backends()
    assert load_backend("jax") is BACKEND
    assert BACKEND.versions()["jax"] == jax.__version__
    assert BACKEND.devices()[0] == "cpu"
    rows = BACKEND.inspect((loss_fn, network(), *batch()), TeleportConfig())
    assert len(rows) == 3
    with pytest.raises(TypeError, match=r"returned a int, expected \(loss_fn, params"):
        BACKEND.inspect(3, TeleportConfig())
