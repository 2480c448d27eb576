"""The public module for authors of adapters, and the defaults of its protocol."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from helpers.mlp_graph import MLPGraph

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
