"""Weights whose transpose is used too, and tied tables: what pins their outputs, and what moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapter.models import Built, Draw, mean_square
from jax_adapter.oracle import find, gradients

from nullport import TeleportConfig
from nullport_jax import inspect, teleport

CONFIG = TeleportConfig(projection="threshold", radius=0.1)
SHORT = TeleportConfig(projection="threshold", radius=0.003)

Outputs = Callable[[Built, Any], Any]


def _projected(built: Built, outputs: Outputs, name: str) -> Any:
    """Project double backward onto the null space of the Jacobian of all that has to stay."""
    _, objective = gradients(built)
    w = built.params[name]
    parts = jax.tree.leaves(jax.jacobian(lambda w: outputs(built, w))(w))
    jacobian = np.concatenate([np.asarray(p).reshape(-1, w.size) for p in parts])
    whole = objective[name].ravel()
    _, s, vt = np.linalg.svd(jacobian, full_matrices=False)
    rows = vt[s > 1e-10 * s.max()]
    return (whole - rows.T @ (rows @ whole)).reshape(w.shape)


def _shallow(free_energy: bool = False) -> Built:
    """A stem, and an autoencoder whose decoder is the transpose of its encoder."""
    draw = Draw()
    params = {"stem": draw(5, 12, scale=0.4), "w": draw(12, 9, scale=0.3)}

    def loss(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["stem"])
        back = jnp.tanh(h @ p["w"]) @ p["w"].T
        more = jnp.sum(jnp.cos(p["w"])) if free_energy else 0.0
        return mean_square(jnp.sin(back), h) + more

    return Built(loss, params, (draw(3, 5),))


def _autoencoded(built: Built, w: jax.Array) -> Any:
    h = jnp.tanh(built.batch[0] @ built.params["stem"])
    return h @ w, jnp.tanh(h @ built.params["w"]) @ w.T


def _penalised() -> Built:
    """A network and the square of its gradient by inputs, in reverse mode."""
    draw = Draw()
    params = {
        "a": draw(4, 12, scale=0.4), "w": draw(12, 11, scale=0.3),
        "c": draw(11, 1, scale=0.3),
    }  # fmt: skip

    def u(p: Any, z: jax.Array) -> jax.Array:
        return (jnp.tanh(jnp.tanh(z @ p["a"]) @ p["w"]) @ p["c"])[0]

    def loss(p: Any, z: jax.Array) -> jax.Array:
        slopes = jax.vmap(jax.grad(u, argnums=1), (None, 0))(p, z)
        return jnp.mean((jnp.linalg.norm(slopes, axis=1) - 1) ** 2)

    return Built(loss, params, (draw(3, 4),))


def _pulled(built: Built, w: jax.Array) -> Any:
    p = built.params
    h = jnp.tanh(built.batch[0] @ p["a"])
    slope = (1 - jnp.tanh(h @ p["w"]) ** 2) * p["c"][:, 0]
    return h @ w, slope @ w.T


CASES: dict[str, tuple[Callable[[], Built], Outputs]] = {
    "tied autoencoder": (_shallow, _autoencoded),
    "gradient penalty": (_penalised, _pulled),
}


@pytest.mark.parametrize("name", CASES)
def test_direction_is_double_backward_projected_on_both_sides(name: str) -> None:
    make, outputs = CASES[name]
    built = make()
    found = find(built)
    assert max(found.unexplained) <= 1e-12
    (k,) = [k for k, b in enumerate(found.blocks) if found.parameters[b.parameter].name == "w"]
    block, direction = found.blocks[k], found.directions[k]
    assert block.transposed
    assert block.bias is None
    whole = np.zeros(built.params["w"].size)
    whole[block.layout.elements()] = direction.ravel()
    expected = _projected(built, outputs, "w").ravel()
    assert np.linalg.norm(whole - expected) <= 1e-9 * np.linalg.norm(expected)
    params, report = jax.jit(lambda p: teleport(built.loss, p, *built.batch, config=CONFIG))(
        built.params
    )
    assert float(built.loss(params, *built.batch)) == pytest.approx(found.loss, rel=1e-12)
    assert not np.array_equal(params["w"], built.params["w"])
    row = next(r for r in report.layers if r.name == "w")
    assert float(row.output_change) <= float(row.output_change_bound) <= 1e-12


def test_another_use_beside_the_transpose_keeps_a_weight() -> None:
    found = find(_shallow(free_energy=True))
    assert "also used by cos" in found.reasons["w"]


def test_a_slice_of_the_transpose_is_another_matrix() -> None:
    built = _shallow()

    def loss(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["stem"])
        return mean_square(jnp.tanh(h @ p["w"]) @ p["w"].T[:, :5], h[:, :5])

    found = find(Built(loss, built.params, built.batch))
    assert "different layouts" in found.reasons["w"]


def _burgers() -> Built:
    """Burgers' equation by a physics-informed network, its derivatives in reverse mode."""
    draw = Draw()
    params = {
        "a": draw(2, 40, scale=0.7), "ab": draw(40), "b": draw(40, 40, scale=0.16),
        "bb": draw(40), "c": draw(40, 1, scale=0.16),
    }  # fmt: skip

    def u(p: Any, z: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.tanh(z @ p["a"] + p["ab"]) @ p["b"] + p["bb"])
        return (h @ p["c"])[0]

    def residual(p: Any, z: jax.Array) -> jax.Array:
        slope = jax.grad(u, argnums=1)
        bent = jax.grad(lambda z: slope(p, z)[0])(z)[0]
        return slope(p, z)[1] + u(p, z) * slope(p, z)[0] - 0.1 * bent

    def loss(p: Any, z: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(residual, (None, 0))(p, z) ** 2)

    return Built(loss, params, (draw(5, 2),))


def test_a_physics_informed_network_moves_and_trains() -> None:
    built = _burgers()
    before = float(built.loss(built.params, *built.batch))

    @jax.jit
    def run(p: Any, z: jax.Array) -> Any:
        moved, report = teleport(built.loss, p, z, config=CONFIG)
        step = jax.tree.map(lambda w, g: w - 1e-2 * g, moved, jax.grad(built.loss)(moved, z))
        return report, built.loss(moved, z), built.loss(step, z)

    report, kept, trained = run(built.params, *built.batch)
    assert float(kept) == pytest.approx(before, rel=1e-12)
    assert float(trained) < before
    moved = {row.name: float(row.moved) for row in report.layers}
    assert moved["b"] == pytest.approx(0.1)
    assert float(report.grad_norm_after) > float(report.grad_norm_before)


def _language_model(penalty: float = 0.0) -> Built:
    draw = Draw()
    params = {"table": draw(12, 9), "w": draw(9, 9, scale=0.3), "bias": draw(12)}

    def loss(p: Any, ids: jax.Array) -> jax.Array:
        h = jnp.tanh(p["table"][ids] @ p["w"])
        logits = h @ p["table"].T + p["bias"]
        more = penalty * jnp.sum(p["table"] ** 2) if penalty else 0.0
        return mean_square(logits, jax.nn.one_hot(ids, 12)) + more

    return Built(loss, params, (jnp.asarray([3, 7, 3, 1]),))


def test_free_rows_of_a_tied_table_move_as_double_backward_says() -> None:
    built = _language_model()
    found = find(built)
    assert max(found.unexplained) <= 1e-12
    (k,) = [k for k, b in enumerate(found.blocks) if b.held is not None]
    p, (ids,) = built.params, built.batch
    h = np.asarray(jnp.tanh(p["table"][ids] @ p["w"]))
    _, objective = gradients(built)
    matrix = np.concatenate([objective["table"], objective["bias"][:, None]], axis=1)
    rows = np.concatenate([h, np.ones((4, 1))], axis=1)
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    expected = matrix - matrix @ vt[s > 1e-10].T @ vt[s > 1e-10]
    expected[np.asarray(ids)] = 0
    assert np.linalg.norm(found.directions[k] - expected) <= 1e-9 * np.linalg.norm(expected)


def test_rows_that_batch_and_guard_look_up_stay() -> None:
    built, guard = _language_model(), jnp.asarray([0, 5, 5])

    @jax.jit
    def run(p: Any, ids: jax.Array, guard: jax.Array) -> Any:
        return teleport(built.loss, p, ids, guard=(guard,), config=SHORT)

    params, report = run(built.params, *built.batch, guard)
    loss = built.loss(built.params, *built.batch)
    assert float(built.loss(params, *built.batch)) == pytest.approx(float(loss), rel=1e-12)
    moved = {row.name: float(row.moved) for row in report.layers}
    assert moved["table"] == pytest.approx(0.003)
    still = np.all(np.asarray(params["table"] == built.params["table"]), axis=1)
    assert np.flatnonzero(still).tolist() == [0, 1, 3, 5, 7]


def test_a_table_with_another_use_or_without_free_rows_stays() -> None:
    assert "also used by" in find(_language_model(penalty=0.1)).reasons["table"]
    built = _language_model()
    rows = inspect(built.loss, built.params, jnp.arange(12), config=CONFIG)
    assert {r.name: r.reason for r in rows}["table"] == "its null space is empty"
