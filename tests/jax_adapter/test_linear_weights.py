"""Weights that are linear functions of parameters, against dense projectors of all elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_adapter.models import Built, Draw, library, mean_square, redrawn
from jax_adapter.oracle import Found, find, floats, gradients, move_at_random

Use = Callable[[jax.Array, Any], jax.Array]


@dataclass(frozen=True)
class Case:
    """A use of ``w``, and of ``u``, ``v`` and ``b``, which are given by their shapes.

    Attributes:
        name: For the test's id.
        use: From the hidden layer and the parameters to the layer's output.
        shapes: Shapes of parameters besides ``stem`` and ``head``.
        moving: Groups of parameters that move together: a weight, perhaps with its bias.
    """

    name: str
    use: Use
    shapes: dict[str, tuple[int, ...]]
    moving: tuple[tuple[str, ...], ...] = (("w",),)

    def __repr__(self) -> str:
        return self.name

    def make(self) -> Built:
        draw = Draw()
        params = {name: draw(*shape, scale=0.4) for name, shape in self.shapes.items()}
        params |= {"stem": draw(5, 9, scale=0.4)}
        x, h = draw(3, 5), jnp.zeros((3, 9))
        params["head"] = draw(jax.eval_shape(self.use, h, params).shape[-1], 3)

        def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            h = jnp.tanh(x @ p["stem"])
            return mean_square(jnp.tanh(self.use(h, p)) @ p["head"], y)

        return Built(loss, params, (x, draw(3, 3)))


W = {"w": (9, 7)}
WU = {"w": (9, 7), "u": (9, 7)}
WB = {"w": (9, 7), "b": (7,)}
BOTH = (("w",), ("u",))
MASK = (np.arange(63).reshape(9, 7) % 3 != 0).astype(float)
SIZES = np.asarray([1, 0, 2], np.int32)


def _convolved(h: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    x = h[:, :8].reshape(3, 2, 4)
    return lax.conv_general_dilated(x, kernel, (1,), "VALID", feature_group_count=groups)


def _in_a_scan(h: jax.Array, p: Any) -> jax.Array:
    doubled = 2 * p["w"]
    return lax.scan(lambda c, _: (jnp.tanh(c @ doubled[:, :9]), None), h, None, length=2)[0]


def _by_counter(h: jax.Array, p: Any) -> jax.Array:
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"][i]), h)


def _two(h: jax.Array) -> jax.Array:
    return jnp.concatenate([h, jnp.sin(h)], axis=1)


CASES = [
    Case("scaled", lambda h, p: h @ (-p["w"] / jnp.sqrt(7.0)), W),
    Case("scaled by outputs", lambda h, p: h @ (p["w"] * jnp.arange(1.0, 8)), W),
    Case("scaled by inputs", lambda h, p: h @ (p["w"] * jnp.arange(1.0, 10)[:, None]), W),
    Case("masked", lambda h, p: h @ (p["w"] * MASK), W),
    Case("where", lambda h, p: h @ jnp.where(MASK > 0, p["w"], 0.3), W),
    Case("scaled, transposed", lambda h, p: (p["w"].T * jnp.arange(1.0, 8)[:, None] @ h.T).T, W),
    Case("reversed and rolled", lambda h, p: h @ jnp.roll(p["w"][::-1], 2, axis=1), W),
    Case("gathered", lambda h, p: h @ p["w"][:, jnp.asarray([0, 3, 3, 1])], W),
    Case("repeated inputs", lambda h, p: _two(h) @ jnp.concatenate([p["w"], p["w"]]), W),
    Case(
        "concatenated outputs",
        lambda h, p: h @ jnp.concatenate([p["w"], 3 * p["u"]], axis=1),
        WU,
        BOTH,
    ),
    Case("concatenated inputs", lambda h, p: _two(h) @ jnp.concatenate([p["w"], p["u"]]), WU, BOTH),
    Case(
        "concatenated with biases",
        lambda h, p: (
            h @ jnp.concatenate([p["w"], p["u"]], axis=1) + jnp.concatenate([p["b"], p["c"]])
        ),
        {**WU, "b": (7,), "c": (7,)},
        (("w", "b"), ("u", "c")),
    ),
    Case(
        "stacked",
        lambda h, p: jnp.einsum("bi,eio->beo", h, jnp.stack([p["w"], p["u"]])).reshape(3, -1),
        WU,
        BOTH,
    ),
    Case("padded", lambda h, p: _two(h)[:, 8:] @ jnp.pad(p["w"], ((1, 0), (0, 0))), W),
    Case(
        "merged",
        lambda h, p: h @ (p["w"] + p["u"] @ p["v"]),
        {"w": (9, 7), "u": (9, 2), "v": (2, 7)},
    ),
    Case("sum of two", lambda h, p: h @ (p["w"] - 2 * p["u"]), WU, BOTH),
    Case(
        "scaled kernel",
        lambda h, p: _convolved(h, 2 * p["w"]).reshape(3, -1),
        {"w": (3, 2, 4)},
    ),
    Case(
        "bias of a grouped kernel",
        lambda h, p: (_convolved(h, p["w"], 2) + p["b"][:, None]).reshape(3, -1),
        {"w": (4, 1, 4), "b": (4,)},
        (("w", "b"),),
    ),
]  # fmt: skip


def _whole(found: Found, params: Any) -> dict[str, Any]:
    """Return directions shaped like the parameters."""
    whole = {name: np.zeros(p.shape) for name, p in floats(params).items()}
    for block, got in zip(found.blocks, found.directions, strict=True):
        pairs = [(block.parameter, block.layout, got)]
        if block.bias is not None:
            pairs = [(block.parameter, block.layout, got[..., :-1]), (*block.bias, got[..., -1])]
        for index, layout, part in pairs:
            whole[found.parameters[index].name].reshape(-1)[layout.elements()] = part.ravel()
    return whole


def _projected(case: Case, built: Built, names: tuple[str, ...], objective: Any) -> Any:
    """Project onto the null space of the Jacobian of the layer's output."""
    x = built.batch[0]
    h = jnp.tanh(x @ built.params["stem"])
    weights = [built.params[name] for name in names]

    def outputs(weights: list[jax.Array]) -> jax.Array:
        return case.use(h, built.params | dict(zip(names, weights, strict=True))).ravel()

    parts = jax.jacobian(outputs)(weights)
    jacobian = np.concatenate([np.asarray(p).reshape(p.shape[0], -1) for p in parts], axis=1)
    whole = np.concatenate([objective[name].ravel() for name in names])
    _, s, vt = np.linalg.svd(jacobian, full_matrices=False)
    rows = vt[s > 1e-10 * s.max()]
    return whole - rows.T @ (rows @ whole)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_direction_is_that_of_the_parameters(case: Case) -> None:
    built = case.make()
    found = find(built)
    assert max(found.unexplained) <= 1e-12
    _, objective = gradients(built)
    whole = _whole(found, built.params)
    for names in case.moving:
        assert not {*names} & {*found.reasons}, found.reasons
        expected = _projected(case, built, names, objective)
        got = np.concatenate([whole[name].ravel() for name in names])
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(got - expected) <= 1e-9 * (scale if scale > 1e-10 else 1.0)
    graph, _ = move_at_random(built, found)
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=1e-11)


NEIGHBOURS: dict[str, Use] = {
    "by its own norm": lambda h, p: h @ (p["w"] / jnp.linalg.norm(p["w"])),
    "a mask of its own": lambda h, p: h @ jnp.where(p["w"] > 0, p["w"], 0.0),
    "scaled by activations": lambda h, p: h @ (p["w"] * jnp.sum(h)),
    "indexed by activations": lambda h, p: h @ p["w"][:, jnp.argsort(h[0])[:7] % 7],
    "exponential": lambda h, p: h @ jnp.exp(p["w"]),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_functions_that_are_not_linear_stay(name: str) -> None:
    built = Case(name, NEIGHBOURS[name], W).make()
    found = find(built)
    assert "w" in found.reasons
    graph, _ = move_at_random(built, found)
    assert np.array_equal(graph.params["w"], built.params["w"])


def test_a_weight_and_its_transpose_are_taken_where_both_uses_stay() -> None:
    built = Case("symmetric", lambda h, p: h[:, :7] @ (p["w"][:7] + p["w"][:7].T), W).make()
    assert "w" not in find(built).reasons


LOOPS: dict[str, tuple[Use, dict[str, tuple[int, ...]]]] = {
    "scaled in a scan": (_in_a_scan, {"w": (9, 12)}),
    "sliced by a counter": (_by_counter, {"w": (3, 9, 9)}),
    "in a branch": (
        lambda h, p: lax.cond(h[0, 0] < 9, lambda h: h @ p["w"], lambda h: h[:, :7], h),
        W,
    ),
    "in branches of a switch": (
        lambda h, p: lax.switch(
            1, [lambda h: h @ p["u"], lambda h: h @ p["w"], lambda h: h[:, :7]], h
        ),
        WU,
    ),
    "ragged": (lambda h, p: lax.ragged_dot(h, p["w"], SIZES), {"w": (3, 9, 7)}),
    "a kernel under vmap": (
        lambda h, p: jax.vmap(lambda k: _convolved(h, k))(p["w"]).swapaxes(0, 1).reshape(3, -1),
        {"w": (2, 3, 2, 4)},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_branches(name: str) -> None:
    use, shapes = LOOPS[name]
    built = Case(name, use, shapes).make()
    found = find(built)
    assert "w" not in found.reasons
    assert max(found.unexplained) <= 1e-12
    graph, _ = move_at_random(built, found)
    assert not np.array_equal(graph.params["w"], built.params["w"])
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=1e-11)


@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "LSTMCell", "GRUCell"])
def test_cells_of_flax_move(cell: str) -> None:
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.RNN(getattr(nn, cell)(9, param_dtype=jnp.float64, name="cell"))(x)[:, -1]
            return nn.Dense(2, param_dtype=jnp.float64)(h)

    draw = Draw()
    x, y = draw(2, 2, 11), draw(2, 2)
    params = redrawn(jax.eval_shape(Net().init, jax.random.key(0), x)["params"])

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(Net().apply({"params": p}, x), y)

    built = Built(loss, params, (x, y))
    found = find(built)
    names = {name for name in floats(params) if name.endswith("kernel")}
    moving = {block.name for block in found.blocks}
    assert names <= moving
    assert max(found.unexplained) <= 1e-12
    graph, _ = move_at_random(built, found)
    assert float(loss(graph.params, x, y)) == pytest.approx(found.loss, rel=1e-11)
