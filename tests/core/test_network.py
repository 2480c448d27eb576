"""The public module for authors of adapters, and the defaults of its protocol."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy
from helpers.mlp_graph import MLPGraph, numbers, unmoved

import nullport
from nullport import network
from nullport.network import Change, LayerGraph, LowRank, factored, matrix


def test_public_names() -> None:
    assert network.LayerGraph is nullport.LayerGraph
    assert set(network.__all__) <= set(vars(network))
    assert set(nullport.__all__) == {
        "Engine", "LayerGraph", "LayerReport", "Outcome", "Rule", "State", "TeleportConfig",
        "TeleportReport", "Teleporter", "inspect", "run", "teleport",
    }  # fmt: skip


def test_an_adapter_supplies_at_most_eight_members() -> None:
    assert len(LayerGraph.__abstractmethods__) == 7


def test_defaults_know_nothing() -> None:
    class Graph(MLPGraph):
        gradient = LayerGraph.gradient

    graph: Any = Graph(np, (3, 4, 2))
    assert graph.batches == frozenset()
    assert not graph.has_optimizer
    assert not graph.repeatable
    assert graph.when(False, lambda x: 2 * x, 3) == 3
    assert graph.when(True, lambda x: 2 * x, 3) == 6
    with pytest.raises(network.TangentUnavailable, match="allowed: tangent='fd' or 'auto'"):
        graph.jvp([], lambda i, x: None)
    with pytest.raises(ValueError, match="reads the optimizer's step"):
        graph.optimizer_step([])
    loss, gradients = graph.gradient()
    expected = graph.differentiate(graph.values)
    assert loss == expected[0]
    assert all(map(np.array_equal, gradients, expected[1]))
    with pytest.raises(ValueError, match="no gradient of the batch 'others'"):
        graph.gradient("others")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_change_in_factors_is_the_formed_one(xp: Any, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 3)), rng.standard_normal((2, 5))
    layout = matrix((), 5, 3).mT if transposed else matrix((), 3, 5)
    weight = rng.standard_normal((5, 3) if transposed else (3, 5))
    change = Change(0, layout, LowRank(xp.asarray(left), xp.asarray(right)))
    found = change.added_to(xp.asarray(weight))
    expected = weight + ((left.T @ right).T if transposed else left.T @ right)
    assert np.allclose(np.asarray(found), expected, rtol=1e-14, atol=1e-14)
    assert found.dtype == xp.float64
    assert type(found) is type(xp.asarray(weight))


def test_a_share_of_a_move_is_kept() -> None:
    graph = MLPGraph(np, (3, 4, 2))
    start = graph.weights()
    change = np.ones((4, 3))
    graph.move([Change(0, matrix((), 4, 3), change)])
    graph.keep(0.25)
    assert np.allclose(graph.values[0], start[0] + 0.25, rtol=1e-15)
    graph.keep(0.0)
    assert graph.values[0] is start[0]
    assert all(a is b for a, b in zip(graph.values, start, strict=True))


def test_which_gradients_are_known_by_factors() -> None:
    use = network.Use(0, 0, "weight", matrix((), 32, 16))
    assert factored([(32, 16)], [use], {0: 2}) == {0: use}
    assert not factored([(32, 16)], [use], {0: 3})  # not smaller
    assert not factored([(32, 16)], [use], {})  # no dense site
    assert not factored([(32, 16)], [use, network.Use(0, reason="mul")], {0: 2})
    assert not factored([(64, 16)], [use], {0: 2})  # a part of the parameter


def test_every_member_is_documented() -> None:
    for name, member in vars(LayerGraph).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert member.__doc__, name


def draw(xp: Any, seed: int, *shape: int, dtype: str = "float64") -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    return xp.astype(xp.asarray(values), getattr(xp, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_change_is_added_in_the_wider_dtype_and_rounded_once(xp: Any, dtype: str) -> None:
    if not hasattr(xp, dtype):
        pytest.skip(f"no {dtype}")
    weight, delta = draw(xp, 0, 4, 6, dtype=dtype), draw(xp, 1, 2, 6, dtype="float32") / 100
    found = Change(0, matrix((), 2, 6, offset=12), delta).added_to(weight)
    assert found.dtype == weight.dtype
    exact = xp.astype(weight, xp.float32)[2:, :] + delta
    expected = xp.concat([weight[:2, :], xp.astype(exact, weight.dtype)])
    assert bool(xp.all(found == expected))


def test_a_bias_and_a_stack_are_changed_too(xp: Any) -> None:
    bias = draw(xp, 0, 5)
    change = Change(0, matrix((), 2, None, offset=3), xp.asarray([1.0, 2.0], dtype=xp.float64))
    moved = to_numpy(change.added_to(bias)) - to_numpy(bias)
    assert moved == pytest.approx([0, 0, 0, 1, 2])
    weight, low = draw(xp, 1, 2, 3, 4), LowRank(draw(xp, 2, 2, 1, 3), draw(xp, 3, 2, 1, 4))
    found = Change(0, matrix((2,), 3, 4), low).added_to(weight)
    assert to_numpy(found) == pytest.approx(to_numpy(weight) + to_numpy(low.dense()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("traced", [False, True], ids=["number", "array"])
def test_shares_of_all_changes(xp: Any, dtype: str, share: float, traced: bool) -> None:
    if not hasattr(xp, dtype):
        pytest.skip(f"no {dtype}")
    graph = MLPGraph(xp, (3, 4, 2), dtype=dtype)
    start = numbers(graph.values)
    wide = xp.float64 if dtype == "float64" else xp.float32
    for i in range(2):
        delta = xp.astype(draw(xp, i, 4, 3), wide)
        graph.move([Change(0, matrix((), 4, 3), delta)])
    there = numbers(graph.values)
    graph.keep(xp.asarray(share, dtype=wide) if traced else share)
    found = graph.values[0]
    assert found.dtype == getattr(xp, dtype)
    assert type(found) is type(graph.start[0])
    if share in (0.0, 1.0):
        assert unmoved(graph, start if share == 0 else there)
    else:
        between = start[0] + share * (there[0].astype(np.float64) - start[0])
        spacing = 2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps
        assert np.abs(to_numpy(found) - between).max() <= spacing * np.abs(between).max()
        graph.keep(0.0)  # a second verdict undoes all of it
        assert unmoved(graph, start)


def test_weights_are_shifted_in_their_own_dtype(xp: Any) -> None:
    weights = [draw(xp, 0, 3, 2, dtype="float32"), draw(xp, 1, 3, dtype="float32")]
    low = LowRank(draw(xp, 2, 1, 3), draw(xp, 3, 1, 2))
    for step in (0.5, xp.asarray(0.5)):
        found = network.shifted(weights, [low, None], step)
        assert found[1] is weights[1]
        assert found[0].dtype == xp.float32
        expected = to_numpy(weights[0]) + 0.5 * to_numpy(low.dense())
        assert to_numpy(found[0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (to_numpy(weights[0]) == to_numpy(draw(xp, 0, 3, 2, dtype="float32"))).all()


def test_a_functional_graph_replays_and_evaluates_elsewhere(xp: Any) -> None:
    graph = MLPGraph(xp, (3, 4, 2))
    v = [draw(xp, i, *w.shape) for i, w in enumerate(graph.values)]
    there = [w + 0.25 * a for w, a in zip(graph.values, v, strict=True)]
    found: dict[int, Any] = {}
    graph.replay(v, xp.asarray(0.25), found.__setitem__)
    for i, x in enumerate(graph.inputs(there)):
        assert to_numpy(found[i]) == pytest.approx(to_numpy(x), rel=1e-12)
    assert float(graph.loss("batch", [-0.25 * a for a in v])) == float(graph.loss_at(there))
    assert graph.at(None) == graph.values
    part = graph.read(0, graph.values[0], matrix((), 2, 3, offset=6))
    assert (to_numpy(part) == to_numpy(graph.values[0])[2:]).all()


def test_one_replica_is_alone(xp: Any) -> None:
    together, x = network.Collective(), xp.asarray(3.0)
    assert together.size == 1
    for method in (together.sum, together.rows, together.mean, together.agree, together.norm):
        assert method(x) is x


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_norms_over_replicas_do_not_overflow(scale: float) -> None:
    class Alike(network.Collective):
        """Four replicas that hold the same."""

        size = 4

        def sum(self, x: Any) -> Any:
            return 4 * x

    together = Alike()
    assert float(together.norm(np.float64(3 * scale))) == pytest.approx(6 * scale)
    assert float(together.mean(np.float64(scale))) == scale
    assert float(together.norm(np.float64(0.0))) == 0.0


def test_a_linearization_knows_its_narrowest_dtype() -> None:
    def bits(*dtypes: Any) -> int:
        sites = [
            network.DenseSite(
                "dense", np.ones((1, 1), d), None if c is None else np.ones((1, 1), c), np.ones(())
            )
            for d, c in dtypes
        ]
        return network.Linearization(np.ones(()), [], sites).bits

    assert bits() == 64
    assert bits((np.float64, np.float64)) == 64
    assert bits((np.float64, None), (np.float64, np.float32)) == 32
    assert bits((np.float16, np.float64)) == 16


@pytest.mark.parametrize(
    ("shape", "layout", "more"),
    [
        ((3, 32, 16), matrix((3,), 32, 16), []),  # a stack
        ((32, 16), matrix((), 32, 16), [network.Use(0, 1, "weight", matrix((), 32, 16))]),
        ((16, 32), matrix((), 16, 32).mT, None),  # stored the other way: yes
    ],
)
def test_factors_are_of_one_whole_matrix(shape: Any, layout: Any, more: Any) -> None:
    use = network.Use(0, 0, "weight", layout)
    found = factored([shape], [use, *(more or [])], {0: 2, 1: 2})
    assert found == ({0: use} if more is None else {})
    assert not factored([(32,)], [network.Use(0, 0, "bias", matrix((), 32, None))], {0: 2})
