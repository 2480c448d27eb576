"""The optax transformation: a training loop as its users write it, and where it does not fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_adapter.test_teleport import batch, loss_fn, network

from nullport import TeleportConfig
from nullport_jax import TeleportingState, teleport, teleporting

CONFIG = TeleportConfig(radius=0.2, objective="grad_norm")


def _digits() -> tuple[Any, Any]:
    sklearn = pytest.importorskip("sklearn.datasets")
    found = sklearn.load_digits()
    return jnp.asarray(found.data / 16), jnp.asarray(found.target)


def _loss(params: Any, x: Any, y: Any) -> Any:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _train(tx: Any, steps: int, **extra: bool) -> tuple[float, Any, int]:
    """Train on digits; return the final loss, the state, the number of compilations."""
    x, y = _digits()
    params = network((64, 64, 64, 10))
    state = tx.init(params)
    traces = []

    @jax.jit
    def step(params: Any, state: Any, xb: Any, yb: Any) -> Any:
        traces.append(1)
        grads = jax.grad(_loss)(params, xb, yb)
        given = {"batch": (xb, yb)} if extra else {}
        updates, state = tx.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    generator = np.random.default_rng(0)
    for _ in range(steps):
        rows = generator.integers(0, len(x), 64)
        params, state = step(params, state, x[rows], y[rows])
    return float(_loss(params, x, y)), state, len(traces)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_it_trains_digits(name: str) -> None:
    make = {"sgd": lambda: optax.sgd(0.02), "adam": lambda: optax.adam(3e-4)}[name]
    x, y = _digits()
    plain, _, _ = _train(make(), 100)
    config = TeleportConfig(objective="look_ahead")  # by itself it would stand back beside Adam
    tx = teleporting(make(), _loss, example=(x[:64], y[:64]), config=config)
    loss, state, traces = _train(tx, 100, teleports=True)
    assert isinstance(state, TeleportingState)
    assert int(state.accepted) > 0
    assert traces == 1
    assert loss < plain
    assert float(state.policy.spent) <= 0.03 * 1000


def test_a_teleport_is_the_move_and_the_step_there() -> None:
    params, data, tx = network(), batch(), optax.sgd(0.05, momentum=0.9)
    wrapped = teleporting(tx, loss_fn, every=1, config=CONFIG)
    state = wrapped.init(params)
    grads = jax.grad(loss_fn)(params, *data)
    updates, state = wrapped.update(grads, state, params, batch=data)
    expected, inner = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)  # not due yet
    params = optax.apply_updates(params, updates)
    updates, after = wrapped.update(jax.grad(loss_fn)(params, *data), state, params, batch=data)
    moved, report = teleport(loss_fn, params, *data, tx=tx, opt_state=inner, config=CONFIG)
    assert report.accepted
    assert int(after.accepted) == 1
    # In full: the caller's gradient is computed too, and the step takes the teleport's instead.
    assert float(after.policy.spent) == pytest.approx(float(report.cost), rel=1e-6)
    there, _ = tx.update(jax.grad(loss_fn)(moved, *data), inner, moved)
    got, wanted = optax.apply_updates(params, updates), optax.apply_updates(moved, there)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, wanted)


def test_a_refused_one_is_an_ordinary_step() -> None:
    params, data, tx = network(), batch(), optax.adam(0.01)
    refused = TeleportConfig(projection="none", radius=50.0, max_loss_change=0.0)
    wrapped = teleporting(tx, loss_fn, every=1, config=refused)
    state = wrapped.init(params)
    state = state._replace(policy=state.policy._replace(due=jnp.zeros((), jnp.float32)))
    grads = jax.grad(loss_fn)(params, *data)
    updates, after = wrapped.update(grads, state, params, batch=data)
    expected, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=0), updates, expected
    )
    assert (int(after.accepted), int(after.refused)) == (0, 1)
    assert int(after.cause) > 0


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}
INNER = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.05),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.05, warmup_steps=2),
    "lbfgs": lambda: optax.lbfgs(0.1, linesearch=None),
}


@pytest.mark.parametrize("name", INNER)
def test_around_other_transformations(name: str) -> None:
    _runs(teleporting(INNER[name](), loss_fn, every=2, config=CONFIG))


@pytest.mark.parametrize("name", WRAPPERS)
def test_inside_other_transformations(name: str) -> None:
    _runs(WRAPPERS[name](teleporting(optax.sgd(0.05), loss_fn, every=2, config=CONFIG)))


def _runs(tx: Any) -> None:
    params, data = network(), batch()
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss_fn)(params, *data), state, params, batch=data)
        return optax.apply_updates(params, updates), state

    start = float(loss_fn(params, *data))
    for _ in range(6):
        params, state = step(params, state)
    assert float(loss_fn(params, *data)) < start
    is_ours = lambda node: isinstance(node, TeleportingState)  # noqa: E731
    ours = [node for node in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(node)]
    assert [int(node.accepted + node.refused) for node in ours] == [2]


def test_inside_masked_it_raises() -> None:
    mask = [{"w": True, "b": False}] * 3
    tx = optax.masked(teleporting(optax.sgd(0.1), loss_fn), mask)
    with pytest.raises(ValueError, match=r"got masked parameters: put it around optax\.masked"):
        tx.init(network())


@pytest.mark.parametrize("missing", ["params", "batch"])
def test_what_update_needs(missing: str) -> None:
    params, data = network(), batch()
    tx = teleporting(optax.sgd(0.1), loss_fn)
    state, grads = tx.init(params), jax.grad(loss_fn)(params, *data)
    given: dict[str, Any] = {"params": params, "batch": data}
    given.pop(missing)
    with pytest.raises(ValueError, match=f"needs {missing}"):
        tx.update(grads, state, given.get("params"), batch=given.get("batch"))


@pytest.mark.parametrize("every", [0, "often"])
def test_bad_every(every: Any) -> None:
    with pytest.raises(ValueError, match="invalid every"):
        teleporting(optax.sgd(0.1), loss_fn, every=every)


def test_a_blank_batch_is_never_looked_at() -> None:
    """With a guard given but too few batches kept, nothing is due yet."""
    params, data, tx = network(), batch(), optax.sgd(0.05)
    wrapped = teleporting(tx, loss_fn, every=1, config=TeleportConfig(), example=data)
    state = wrapped.init(params)
    grads, made = jax.grad(loss_fn)(params, *data), []
    for _ in range(4):
        _, state = wrapped.update(grads, state, params, batch=data, guard=data)
        made.append(int(state.accepted + state.refused))
    assert made == [0, 0, 1, 2]
