"""The graph itself: optimizer, other batches, undoing, precision, and all of it under jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapter.models import Built, Draw, mean_square
from jax_adapter.oracle import floats

from nullport import TeleportConfig, run
from nullport.network import Change, TangentUnavailable, matrix
from nullport_jax import teleport
from nullport_jax._graph import JaxGraph

Tree = dict[str, Any]


def built() -> Built:
    draw = Draw()
    params = {"a": draw(5, 8, scale=0.4), "steps": jnp.arange(3), "c": {"w": draw(8, 3)}}

    def loss(p: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(jnp.tanh(x @ p["a"]) @ p["c"]["w"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


def batch(seed: int) -> tuple[jax.Array, jax.Array]:
    draw = Draw(seed)
    return draw(6, 5), draw(6, 3)


def only_floats(params: Tree) -> Tree:
    return {"a": params["a"], "steps": None, "c": params["c"]}


def gradient(b: Built, params: Tree, data: tuple[Any, ...]) -> Tree:
    def loss(given: Tree) -> jax.Array:
        return b.loss({**params, **given}, *data)

    return jax.grad(loss)({"a": params["a"], "c": params["c"]})


def close(got: Any, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-13)


def test_names_and_leaves_that_do_not_move() -> None:
    graph = JaxGraph(*built())
    assert [p.name for p in graph.parameters] == ["a", "c.w", "steps"]
    assert [p.movable for p in graph.parameters] == [True, True, False]
    assert graph.parameters[2].reason == "it holds int64, not floats"
    lin = graph.linearize()
    assert lin.gradients[2] is None
    assert [w.shape for w in graph.weights()] == [(5, 8), (8, 3), (3,)]


@pytest.mark.parametrize("name", ["sgd", "adamw", "chain", "lbfgs", "plateau"])
def test_the_optimizers_step_is_optaxs(name: str) -> None:
    optax = pytest.importorskip("optax")
    tx = {
        "sgd": lambda: optax.sgd(0.1, momentum=0.9),
        "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.1),
        "chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
        "lbfgs": lambda: optax.lbfgs(memory_size=3),
        "plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    }[name]()
    b = built()
    params = only_floats(b.params)
    state = tx.init(params)

    def loss(given: Tree) -> jax.Array:
        return b.loss({**b.params, "a": given["a"], "c": given["c"]}, *b.batch)

    def update(params: Tree, state: Any) -> Any:
        value, g = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": g, "value_fn": loss}
        return tx.update(g, state, params, **(extra if name in ("lbfgs", "plateau") else {}))

    step, state = update(params, state)
    params = optax.apply_updates(params, step)
    expected, _ = update(params, state)
    moved = {**b.params, "a": params["a"], "c": params["c"]}
    graph = JaxGraph(b.loss, moved, b.batch, tx=tx, opt_state=state)
    assert graph.has_optimizer
    step = graph.optimizer_step(graph.linearize().gradients)
    close(step[0], -expected["a"], 1e-9)
    close(step[1], -expected["c"]["w"], 1e-9)
    assert step[2] is None
    assert graph.optimizer_step([None] * 3)[2] is None


def test_other_samples() -> None:
    b = built()
    graph = JaxGraph(*b, guard=batch(1), others=batch(2))
    shift = [0.1 * w for w in graph.weights()[:2]] + [None]
    moved = {
        "a": 0.9 * b.params["a"],
        "steps": b.params["steps"],
        "c": {"w": 0.9 * b.params["c"]["w"]},
    }
    assert graph.batches == {"guard", "others"}
    close(graph.loss(shift=shift), b.loss(moved, *b.batch))
    close(graph.loss(), b.loss(b.params, *b.batch))
    close(graph.loss("guard", shift), b.loss(moved, *batch(1)))
    expected = gradient(b, moved, batch(2))
    value, got = graph.gradient("others", shift)
    close(value, b.loss(moved, *batch(2)))
    close(got[0], expected["a"])
    close(got[1], expected["c"]["w"])
    assert got[2] is None
    value, own = graph.gradient()
    close(value, b.loss(b.params, *b.batch))
    close(own[0], gradient(b, b.params, b.batch)["a"])


def test_what_is_missing_is_said() -> None:
    graph = JaxGraph(*built())
    assert not graph.has_optimizer
    assert not graph.batches
    with pytest.raises(ValueError, match="pass tx= and opt_state="):
        graph.optimizer_step([None, None, None])
    b = built()
    with pytest.raises(ValueError, match="pass tx= and opt_state="):
        teleport(b.loss, b.params, *b.batch, config=TeleportConfig(objective="others"))
    optax = pytest.importorskip("optax")
    tx, config = optax.sgd(0.1), TeleportConfig(objective="others")
    with pytest.raises(ValueError, match="pass others="):
        teleport(b.loss, b.params, *b.batch, tx=tx, opt_state=tx.init(b.params), config=config)
    with pytest.raises(ValueError, match="1 arrays, none of them of floats"):
        JaxGraph(b.loss, {"steps": jnp.arange(2)}, b.batch)
    with pytest.raises(ValueError, match=r"loss_fn returned float64\[4, 3\], expected a scalar"):
        JaxGraph(lambda p, x, y: x @ p["a"] @ p["c"]["w"] - y, b.params, b.batch)
    with pytest.raises(ValueError, match="with has_aux=True"):
        JaxGraph(lambda p, x, y: jnp.argmax(b.loss(p, x, y)), b.params, b.batch)


def test_an_auxiliary_output_is_dropped() -> None:
    """A use that is only in the auxiliary output does not exclude a weight."""
    b = built()

    def loss(p: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return b.loss(p, x, y), p["c"]["w"][jnp.arange(2)].sum()

    graph = JaxGraph(loss, b.params, b.batch, has_aux=True)
    lin = graph.linearize()
    close(lin.loss, b.loss(b.params, *b.batch))
    assert all(use.layout is not None for use in lin.uses)


def test_what_is_only_shown_or_returned_beside_the_loss_excludes_nothing(capfd: Any) -> None:
    """Also inside of a jitted loss, whose auxiliary output is computed with the loss."""
    b = built()

    @jax.jit
    def loss(p: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.print("shown: {}", p["a"][0, 0])
        return b.loss(p, x, y), p["c"]["w"][jnp.arange(2)].sum() + jnp.sin(p["a"]).sum()

    graph = JaxGraph(loss, b.params, b.batch, has_aux=True)
    lin = graph.linearize()
    jax.effects_barrier()
    assert "shown: " in capfd.readouterr().out
    assert [use.reason for use in lin.uses] == ["", ""]
    wanted = gradient(b, b.params, b.batch)
    close(lin.gradients[0], wanted["a"])
    close(lin.gradients[1], wanted["c"]["w"])


def test_moves_are_undone_bit_for_bit() -> None:
    b = built()
    graph = JaxGraph(*b)
    graph.linearize()
    change = Change(0, matrix((), 5, 8), jnp.full((5, 8), 0.1))
    for none in (0, 0.0, jnp.asarray(0.0)):
        graph.move([change])
        assert not np.array_equal(graph.params["a"], b.params["a"])
        graph.keep(none)
        assert np.array_equal(graph.params["a"], b.params["a"])
    for every in (1, 1.0, jnp.asarray(1.0)):
        graph = JaxGraph(*b)
        graph.move([change])
        moved = graph.params["a"]
        close(moved, b.params["a"] + 0.1)
        graph.keep(every)
        assert np.array_equal(graph.params["a"], moved)
    assert graph.params["steps"] is b.params["steps"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_share_of_a_move_is_kept(dtype: str, jitted: bool) -> None:
    b = built()
    start = b.params["a"].astype(dtype)

    def kept(start: jax.Array, share: Any) -> Any:
        graph = JaxGraph(b.loss, {**b.params, "a": start}, b.batch)
        graph.move([Change(0, matrix((), 5, 8), jnp.full((5, 8), 0.5))])
        moved = graph.params["a"]
        graph.keep(share)
        return moved, graph.params["a"]

    for share in (0.0, 0.25, 1.0):
        moved, got = (jax.jit(kept) if jitted else kept)(start, jnp.asarray(share))
        assert got.dtype == dtype
        wide = [np.asarray(a, np.float64) for a in (start, moved)]
        expected = jnp.asarray(wide[0] + share * (wide[1] - wide[0])).astype(dtype)
        if share in (0.0, 1.0):
            assert np.array_equal(got, moved if share else start)
        else:
            close(np.asarray(got, np.float64), np.asarray(expected, np.float64))


@pytest.mark.parametrize("jitted", [False, True])
def test_what_is_moved_conditionally(jitted: bool) -> None:
    b = built()

    def after(params: Tree, flag: Any) -> Any:
        graph = JaxGraph(b.loss, params, b.batch)
        graph.move([Change(0, matrix((), 5, 8), jnp.full((5, 8), 0.5))])

        def again(values: Any) -> Any:
            graph.keep(0.5)
            loss, gradients = graph.gradient()
            return ((loss, gradients), None, values[2] + 1)

        values = (graph.gradient(), None, jnp.asarray(1.0))
        found = graph.when(flag, again, values)
        return found, floats(graph.params), graph.loss(), graph._current()

    for flag in (False, True):
        (first, none, count), moved, *losses = (jax.jit(after) if jitted else after)(
            b.params, jnp.asarray(flag)
        )
        assert none is None
        assert float(count) == 1 + flag
        close(moved["a"], b.params["a"] + (0.25 if flag else 0.5))
        expected = b.loss({**b.params, "a": moved["a"]}, *b.batch)
        for loss in (first[0], *losses):
            close(loss, expected)
        close(first[1][0], gradient(b, {**b.params, "a": moved["a"]}, b.batch)["a"])


def test_everything_under_an_outer_jit() -> None:
    optax = pytest.importorskip("optax")
    b = built()
    tx = optax.adam(0.1)
    state = tx.init(only_floats(b.params))
    v = [jnp.ones((5, 8)), None, None]

    def everything(params: Tree, data: Any, accepted: Any, state: Any) -> Any:
        graph = JaxGraph(
            b.loss, params, data, guard=batch(1), others=batch(2), tx=tx, opt_state=state
        )
        lin = graph.linearize()
        inputs: dict[int, Any] = {}
        tangents: dict[int, Any] = {}
        graph.replay(v, jnp.asarray(0.01), inputs.__setitem__)
        graph.jvp(v, tangents.__setitem__)
        step = graph.optimizer_step(lin.gradients)
        found = [lin.loss, lin.gradients, inputs, tangents, step, graph.gradient("others", step)]
        found += [graph.loss("batch", step), graph.loss("guard", step), graph.gradient()]
        found += [(s.inputs, s.cotangent, s.output_norm, *s.rows()) for s in lin.sites]
        graph.move([Change(0, matrix((), 5, 8), jnp.full((5, 8), 0.1))])
        graph.keep(jnp.asarray(accepted, float))
        return found, floats(graph.params)

    for accepted in (True, False):
        args = b.params, b.batch, jnp.asarray(accepted), state
        jax.tree_util.tree_map(close, jax.jit(everything)(*args), everything(*args))


def test_the_users_precision_is_not_the_cores() -> None:
    """Under TF32-like defaults the loss that is tested has to be the loss that is trained."""
    b = built()
    seen: list[str] = []

    def loss(p: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        seen.append(str(jax.config.jax_default_matmul_precision))
        return b.loss(p, x, y)

    with jax.default_matmul_precision("bfloat16"):
        graph = JaxGraph(loss, b.params, b.batch, guard=batch(1), others=batch(2))
    with graph.exact():
        assert jax.config.jax_default_matmul_precision == "highest"
        graph.linearize()
        graph.gradient()
        graph.loss("guard")
        graph.gradient("others", [None] * 3)
    assert set(seen) == {"bfloat16"}
    assert len(seen) == 3


def test_forward_mode_that_is_not_there_is_said() -> None:
    b = built()

    @jax.custom_vjp
    def twice(x: jax.Array) -> jax.Array:
        return 2 * x

    def back(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (jnp.clip(2 * g, -1, 1),)

    twice.defvjp(lambda x: (twice(x), None), back)
    graph = JaxGraph(lambda p, x, y: b.loss(p, x, y) + twice(p["a"]).sum(), b.params, b.batch)
    graph.linearize()
    tangents: dict[int, jax.Array] = {}
    graph.jvp([jnp.ones((5, 8)), None, None], tangents.__setitem__)  # it is not in the way

    def loss(p: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(twice(jnp.tanh(x @ p["a"])) @ p["c"]["w"], y)

    graph = JaxGraph(loss, b.params, b.batch)
    graph.linearize()
    with pytest.raises(TangentUnavailable):
        graph.jvp([jnp.ones((5, 8)), None, None], tangents.__setitem__)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision(dtype: str) -> None:
    """Inputs and cotangents keep the dtype of the network; casts of weights are seen through."""
    jax.config.update("jax_enable_x64", False)
    b = built()
    x, y = (a.astype(jnp.float32) for a in b.batch)
    params = {"a": jnp.asarray(b.params["a"], jnp.float32), "w": jnp.asarray(b.params["c"]["w"])}

    def loss(p: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        p = {name: w.astype(dtype) for name, w in p.items()}
        out = jnp.tanh(x.astype(dtype) @ p["a"]) @ p["w"]
        return mean_square(out.astype(jnp.float32), y)

    graph = JaxGraph(loss, params, (x, y))
    lin = graph.linearize()
    expected = jax.grad(loss)(params, x, y)
    for use, name in zip(lin.uses, ("a", "w"), strict=True):
        assert use.site is not None
        assert use.layout is not None
        site = lin.sites[use.site]
        assert site.inputs.dtype == dtype
        part = site.weight_gradient(site.inputs.astype(jnp.float32))
        got = graph.read(use.parameter, expected[name], use.layout)
        assert jnp.linalg.norm(part - got) <= (
            1e-5 if dtype == "float32" else 0.02
        ) * jnp.linalg.norm(got)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_teleport_of_several_steps_hands_over_the_gradient_it_settles_on(
    accepted: bool, jitted: bool
) -> None:
    b = built()
    # Moves of many times the weights, not projected, are refused.
    far = {"projection": "none", "radius": 30.0, "max_loss_change": 0.0}
    config = TeleportConfig(steps=2, **({"radius": 0.1} if accepted else far))

    def jump(params: Tree) -> Any:
        graph = JaxGraph(b.loss, params, b.batch)
        report, found = run(graph, config)
        assert found is not None
        return report, found[0], graph.like_params(found[1]), graph.params

    report, loss, found, settled = (jax.jit(jump) if jitted else jump)(b.params)
    assert bool(report.accepted) == accepted
    assert np.array_equal(settled["a"], b.params["a"])
    assert np.array_equal(settled["c"]["w"], b.params["c"]["w"]) != accepted
    close(loss, b.loss(settled, *b.batch))
    expected = gradient(b, settled, b.batch)
    close(found["a"], expected["a"])
    close(found["c"]["w"], expected["c"]["w"])
    assert np.array_equal(found["steps"], [0, 0, 0])
