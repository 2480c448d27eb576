"""Tangents of layer inputs: a difference, forward mode by hand, and the way that is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import relative, to_numpy
from helpers.mlp_graph import ForwardMLPGraph, MLPGraph, along, numbers

from nullport import Engine, TeleportConfig, teleport
from nullport._tangent import difference
from nullport.network import LowRank, TangentUnavailable

SIZES = (6, 20, 15, 3)


class Sites:
    """Takes tangents of all sites of a graph."""

    def __init__(self, graph: MLPGraph) -> None:
        self.held = graph.forward(graph.values, graph.data["batch"][0])[0]
        self.found: dict[int, Any] = {}

    def inputs(self, index: int) -> Any:
        return self.held[index]

    def receive(self, index: int, tangent: Any) -> None:
        assert index == len(self.found), "in the order of the sites"
        self.found[index] = tangent


def direction(graph: MLPGraph, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    xp = graph.xp
    return [xp.astype(xp.asarray(rng.standard_normal(w.shape)), graph.dtype) for w in graph.values]


def expected(graph: MLPGraph, v: list[Any]) -> list[Any]:
    """Return the tangents by a central difference in float64."""
    twin = MLPGraph(np, SIZES)
    x = to_numpy(graph.data["batch"][0]).astype(np.float64)
    values, v = ([a.astype(np.float64) for a in numbers(b)] for b in (graph.values, v))
    return along(lambda w: twin.forward(w, x)[0], values, v, 1e-6)


def taken(graph: MLPGraph, choice: str, bits: int, v: list[Any], step: float = 1.0) -> Any:
    engine, sites = Engine(choice), Sites(graph)
    cost = engine(graph, v, graph.xp.asarray(step, dtype=graph.dtype), sites, bits, 1 / 3)
    return sites.found, cost, engine


@pytest.mark.parametrize("step", [1.0, 0.37])
def test_forward_mode_is_the_derivative(xp: Any, step: float) -> None:
    graph = ForwardMLPGraph(xp, SIZES)
    v = direction(graph)
    found, cost, _ = taken(graph, "jvp", 64, v, step)
    assert cost == pytest.approx(2 / 3)
    for i, exact in enumerate(expected(graph, v)):
        assert found[i].dtype == xp.float64
        assert type(found[i]) is type(graph.values[0])
        if i:
            assert relative(to_numpy(found[i]), step * exact) <= 1e-8
        else:
            assert not to_numpy(found[i]).any()


@pytest.mark.parametrize(
    ("relative_step", "tolerance"),
    [(1e-2, 1e-1), (1e-4, 1e-3), (1e-6, 1e-5), (1e-7, 1e-6), (1e-9, 1e-5)],
)
def test_a_difference_is_right_to_its_first_order(relative_step: float, tolerance: float) -> None:
    """Truncation falls with the step, rounding grows: ``h`` and ``eps / h``."""
    graph = ForwardMLPGraph(np, SIZES)
    v, sites = direction(graph), Sites(graph)
    scale = np.linalg.norm(np.concatenate([a.ravel() for a in graph.values]))
    scale /= np.linalg.norm(np.concatenate([a.ravel() for a in v]))
    difference(graph, v, np.float64(scale), relative_step, sites.inputs, sites.receive)
    for i, exact in enumerate(expected(graph, v)):
        if i:
            assert relative(sites.found[i], scale * exact) <= tolerance


@pytest.mark.parametrize(
    ("dtype", "bits", "tolerance"), [("float64", 64, 1e-6), ("float32", 32, 0.05)]
)
def test_the_engines_agree(xp: Any, dtype: str, bits: int, tolerance: float) -> None:
    graph = ForwardMLPGraph(xp, SIZES, dtype=dtype)
    v = direction(graph)
    made = {choice: taken(graph, choice, bits, v) for choice in ("fd", "jvp")}
    assert made["fd"][1] == pytest.approx(1 / 3)
    for i in (1, 2):
        a, b = (to_numpy(made[choice][0][i]).astype(np.float64) for choice in ("fd", "jvp"))
        assert relative(a, b) <= tolerance
        assert made["fd"][0][i].dtype == getattr(xp, dtype)


def test_a_vector_may_have_gaps_and_entries_in_factors() -> None:
    graph = ForwardMLPGraph(np, SIZES)
    rng = np.random.default_rng(0)
    low = LowRank(rng.standard_normal((2, 20)), rng.standard_normal((2, 6)))
    v = [low, None, None, rng.standard_normal(15), None, None]
    full = [
        low.dense(),
        *(
            np.zeros_like(w) if a is None else a
            for w, a in zip(graph.values[1:], v[1:], strict=True)
        ),
    ]
    for choice, tolerance in (("fd", 1e-5), ("jvp", 1e-8)):
        found = taken(graph, choice, 64, v)[0]
        for i, exact in enumerate(expected(graph, full)):
            if i:
                assert relative(found[i], exact) <= tolerance


@pytest.mark.parametrize(("bits", "way"), [(16, "jvp"), (32, "fd"), (64, "jvp")])
def test_auto_goes_by_the_dtype(bits: int, way: str) -> None:
    assert Engine("auto").choose(bits) == way
    for choice in ("fd", "jvp"):
        assert Engine(choice).choose(bits) == choice


class WrongRule(ForwardMLPGraph):
    """Forward mode without the derivative of tanh."""

    def jvp(self, v: Any, receive: Any) -> None:
        super().jvp([None if a is None else 3 * a for a in v], receive)


class OnlyForwardMode(ForwardMLPGraph):
    """A network whose forward pass cannot be repeated."""

    def replay(self, v: Any, step: Any, receive: Any) -> None:
        msg = "no second forward pass"
        raise TangentUnavailable(msg)


def test_a_wrong_rule_is_found_and_remembered() -> None:
    graph = WrongRule(np, SIZES)
    v = direction(graph)
    right = taken(ForwardMLPGraph(np, SIZES), "fd", 64, v)[0]
    found, cost, engine = taken(graph, "auto", 64, v)
    assert cost == pytest.approx(1 / 3)
    assert all((found[i] == right[i]).all() for i in right)
    assert engine.choose(64) == "fd"
    with pytest.raises(ValueError, match=r"a wrong derivative rule; allowed here: tangent='fd'"):
        taken(graph, "jvp", 64, v)


def test_a_right_rule_is_checked_once() -> None:
    graph = ForwardMLPGraph(np, SIZES)
    engine, v = Engine("auto"), direction(graph)
    for _ in range(3):
        engine(graph, v, np.float64(1.0), Sites(graph), 64, 1 / 3)
    assert engine.choose(64) == "jvp"
    assert graph.counts["replay"] == 1


def test_where_there_is_nothing_to_check_with_forward_mode_is_believed() -> None:
    graph = OnlyForwardMode(np, SIZES)
    found, cost, engine = taken(graph, "auto", 64, direction(graph))
    assert cost == pytest.approx(2 / 3)
    assert sorted(found) == [0, 1, 2]
    assert engine.choose(64) == "jvp"


class HalfWay(ForwardMLPGraph):
    """Forward mode that fails at the last site."""

    def jvp(self, v: Any, receive: Any) -> None:
        def some(index: int, tangent: Any) -> None:
            if index == 2:
                msg = "no rule for the last"
                raise TangentUnavailable(msg)
            receive(index, tangent)

        super().jvp(v, some)


@pytest.mark.parametrize(
    ("kind", "dtype", "way", "linearized"),
    [(MLPGraph, "float64", "fd", 1), (OnlyForwardMode, "float32", "jvp", 1)],
)
def test_the_other_way_is_taken_where_one_is_missing(
    kind: Any, dtype: str, way: str, linearized: int
) -> None:
    engine, config = Engine("auto"), TeleportConfig(objective="grad_norm")
    graphs = [kind(np, SIZES, dtype=dtype) for _ in range(2)]
    reports = [teleport(graph, config, engine=engine) for graph in graphs]
    assert [report.tangent for report in reports] == [way, way]
    assert [graph.counts["linearize"] for graph in graphs] == [linearized, 1]
    assert reports[0].cost - reports[1].cost == pytest.approx(linearized - 1)


def test_sites_that_were_freed_on_the_way_are_made_once_more() -> None:
    engine, config = Engine("auto"), TeleportConfig(objective="grad_norm")
    engine._checked = True  # else the check would find it before
    graph, plain = HalfWay(np, SIZES), MLPGraph(np, SIZES)
    report = teleport(graph, config, engine=engine)
    other = teleport(plain, config, engine=engine)
    assert report.tangent == other.tangent == "fd"
    assert graph.counts["linearize"] == 2
    assert report.cost - other.cost == pytest.approx(1.0)
    assert all(map(np.array_equal, graph.values, plain.values))


def test_giving_up_ends() -> None:
    engine = Engine("auto")
    assert engine.give_up(64)
    assert not engine.give_up(64)
    assert not Engine("fd").give_up(64)

    class Neither(MLPGraph):
        replay = OnlyForwardMode.replay

    graph = Neither(np, SIZES)
    with pytest.raises(TangentUnavailable):
        teleport(graph, TeleportConfig(objective="grad_norm"))
    assert graph.kept == [0.0]
