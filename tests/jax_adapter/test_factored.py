"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapter.models import Draw, mean_square

from nullport import TeleportConfig, network
from nullport.network import DenseSite, LowRank, factored
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


def named(graph: JaxGraph) -> dict[int, Any]:
    """Return what the core would hand over in factors."""
    lin = graph.linearize()
    samples = {i: s.samples for i, s in enumerate(lin.sites) if isinstance(s, DenseSite)}
    return factored([w.shape for w in graph.weights()], lin.uses, samples)


@pytest.mark.parametrize("way", list(WAYS))
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(way: str) -> None:
    loss, params, data = made(way)
    graph = JaxGraph(loss, params, data)
    lin = graph.linearize()
    names = [p.name for p in graph.parameters]
    v = list(lin.gradients)
    for i, use in named(graph).items():
        assert use.site is not None
        assert use.layout is not None
        site = lin.sites[use.site]
        change = LowRank(site.cotangent, site.inputs)
        v[i] = change.mT if use.layout.transposed else change
        np.testing.assert_allclose(v[i].dense(), lin.gradients[i], rtol=1e-11, atol=1e-12)
    assert [names[i] for i, a in enumerate(v) if isinstance(a, LowRank)] == ["a", "b"]
    found: list[dict[int, Any]] = [{}, {}]
    step = jnp.asarray(0.5)
    graph.replay(v, step, found[0].__setitem__)
    graph.replay(lin.gradients, step, found[1].__setitem__)
    assert set(found[0]) == set(found[1])
    for i, expected in found[1].items():
        np.testing.assert_allclose(found[0][i], expected, rtol=1e-11, atol=1e-12)
        assert not np.allclose(expected, lin.sites[i].inputs)


def test_factors_of_a_matrix_that_is_cut_across_its_axes_are_not_its_gradient() -> None:
    draw = Draw()
    params = {"w": draw(16, 16, scale=0.3), "head": draw(16, 2)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.einsum("nac,abcd->nbd", x, p["w"].reshape(4, 4, 4, 4))
        return mean_square(jnp.tanh(h).reshape(1, 16) @ p["head"], y)

    graph = JaxGraph(loss, params, (draw(1, 4, 4), draw(1, 2)))
    layouts = [use.layout for use in graph.linearize().uses]
    assert (16, 16) in [layout.shape for layout in layouts if layout is not None]
    assert named(graph) == {}


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
    monkeypatch.setattr(network, "FEWER", 10**9)
    theirs, _ = run()
    for name, expected in theirs.items():
        np.testing.assert_allclose(mine[name], expected, rtol=1e-6, atol=1e-7)
    assert not np.allclose(theirs["b"], params["b"], atol=1e-4)


@pytest.mark.parametrize("scanned", [False, True], ids=["one weight", "a stack of weights"])
def test_products_inside_a_scan_move_with_their_weights(scanned: bool) -> None:
    draw = Draw()
    shape = (2, WIDTH, WIDTH) if scanned else (WIDTH, WIDTH)
    params = {"w": draw(*shape, scale=WIDTH**-0.5), "head": draw(WIDTH, 4)}

    def loss(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        ws = p["w"] if scanned else None
        x, _ = jax.lax.scan(
            lambda x, w: (jnp.tanh(x @ (p["w"] if w is None else w)), None), x, ws, length=2
        )
        return mean_square(x @ p["head"], y)

    graph = JaxGraph(loss, params, (draw(2, WIDTH), draw(2, 4)))
    names = [p.name for p in graph.parameters]
    assert [names[i] for i in named(graph)] == ([] if scanned else ["w"])
    lin = graph.linearize()
    v = list(lin.gradients)
    for i, use in named(graph).items():
        assert use.site is not None
        v[i] = LowRank(lin.sites[use.site].inputs, lin.sites[use.site].cotangent)
    found: list[dict[int, Any]] = [{}, {}]
    graph.replay(v, jnp.asarray(0.5), found[0].__setitem__)
    graph.replay(lin.gradients, jnp.asarray(0.5), found[1].__setitem__)
    assert found[0].keys() == found[1].keys()
    for i, expected in found[1].items():
        np.testing.assert_allclose(found[0][i], expected, rtol=1e-11, atol=1e-12)


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
        patch.setattr(network, "FEWER", 10**9)
        plain = counted(2) - counted(1)
    assert one < plain
