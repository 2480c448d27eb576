"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapter.models import Draw, mean_square

from nullport import TeleportConfig, _factored
from nullport_jax import teleport
from nullport_jax._graph import JaxGraph

WIDTH, SAMPLES = 32, 3
Params = dict[str, jax.Array]


def remat(p: Params, x: jax.Array) -> jax.Array:
    return jax.checkpoint(lambda a, b, x: jnp.tanh(x @ a) @ b)(p["a"], p["b"], x)


WAYS: dict[str, Callable[[Params, jax.Array], jax.Array]] = {
    "matmul": lambda p, x: jnp.tanh(x @ p["a"] + p["shift"]) @ p["b"],
    "transposed": lambda p, x: jnp.tanh(x @ p["a"].T) @ p["b"].T,
    "outputs in front": lambda p, x: (p["b"] @ jnp.tanh(p["a"] @ x.T)).T,
    "rows in two axes": lambda p, x: (jnp.tanh(x[:, None] @ p["a"]) @ p["b"])[:, 0],
    "remat": remat,
}


def made(way: str) -> tuple[Callable[..., jax.Array], Params, tuple[jax.Array, jax.Array]]:
    draw = Draw()
    params = {name: draw(WIDTH, WIDTH, scale=WIDTH**-0.5) for name in ("a", "b")}
    params |= {"shift": draw(WIDTH), "head": draw(WIDTH, 4)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(jnp.tanh(WAYS[way](p, x)) @ p["head"], y)

    return loss, params, (draw(SAMPLES, WIDTH), draw(SAMPLES, 4))


@pytest.mark.parametrize("way", list(WAYS))
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(way: str) -> None:
    loss, params, data = made(way)
    graph = JaxGraph(loss, params, data)
    lin = graph.linearize()
    names = [p.name for p in graph.parameters]
    uses = {u.site: u.parameter for u in lin.uses if u.role == "weight"}
    along = {s: lin.sites[s] for s, i in uses.items() if names[i] in ("a", "b")}
    assert len(along) == 2
    assert set(along) <= set(lin.factored)
    rest = [None if names[i] in ("a", "b") else g for i, g in enumerate(lin.gradients)]
    found: list[dict[int, Any]] = [{}, {}]
    step = jnp.asarray(0.5)
    graph.replay(rest, step, found[0].__setitem__, along)
    graph.replay(lin.gradients, step, found[1].__setitem__)
    assert set(found[0]) == set(found[1])
    for i, expected in found[1].items():
        np.testing.assert_allclose(found[0][i], expected, rtol=1e-11, atol=1e-12)
        assert not np.allclose(expected, lin.sites[i].inputs)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("jitted", [False, True])
def test_a_teleport_is_the_same_without_factors(
    way: str, jitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, params, data = made(way)
    config = TeleportConfig(tangent="fd", steps=2, radius=0.1, objective="grad_norm")

    def jump(p: Params, *data: Any) -> Any:
        return teleport(loss, p, *data, config=config)

    def run() -> Any:
        return (jax.jit(lambda *a: jump(*a)) if jitted else jump)(params, *data)

    mine, report = run()
    assert int(report.cause) == 0
    monkeypatch.setattr(_factored, "FEWER", 10**9)
    theirs, _ = run()
    for name, expected in theirs.items():
        np.testing.assert_allclose(mine[name], expected, rtol=1e-6, atol=1e-7)
    assert not np.allclose(theirs["b"], params["b"], atol=1e-4)


def test_products_inside_a_scan_are_not_moved_along() -> None:
    draw = Draw()
    params = {"w": draw(2, WIDTH, WIDTH, scale=WIDTH**-0.5), "head": draw(WIDTH, 4)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])
        return mean_square(x @ p["head"], y)

    graph = JaxGraph(loss, params, (draw(SAMPLES, WIDTH), draw(SAMPLES, 4)))
    lin = graph.linearize()
    names = [p.name for p in graph.parameters]
    uses = {u.site: names[u.parameter] for u in lin.uses}
    assert [uses[i] for i in lin.factored] == ["head"]
    assert len(uses) == 2


def test_the_compiled_step_makes_fewer_passes_over_the_weights() -> None:
    loss, params, data = made("matmul")

    def counted(steps: int) -> float:
        config = TeleportConfig(tangent="fd", steps=steps, radius=0.1, objective="grad_norm")
        compiled = (
            jax.jit(lambda p: teleport(loss, p, *data, config=config)).lower(params).compile()
        )
        return float(compiled.cost_analysis()["flops"])

    one = counted(2) - counted(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_factored, "FEWER", 10**9)
        plain = counted(2) - counted(1)
    assert one < plain
