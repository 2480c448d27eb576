"""The budget projection against a constrained optimum found by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy
from helpers.mlp_graph import MLPGraph
from hypothesis import given
from hypothesis import strategies as st

from nullport import TeleportConfig, teleport
from nullport._budget import BudgetFilter, budget_gain
from nullport._rowspace import row_space


def _problem(seed: int, k: int, decay: float) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return decay ** np.arange(k)[::-1], generator.exponential(size=k)


def _gain(d: Any, n: Any, x: Any, change: float, length: float) -> float:
    """What a direction wins to first order, as far as both constraints allow to go."""
    reach = min(change / np.linalg.norm(n @ x.T), length / np.linalg.norm(n))
    return float(reach * np.sum(d * n))


@given(
    k=st.integers(2, 12),
    decay=st.sampled_from([0.1, 0.5, 0.9]),
    share=st.floats(0.01, 0.99),
    outside=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_the_budget_is_met_exactly_where_it_binds(
    k: int, decay: float, share: float, outside: float, seed: int
) -> None:
    energies, coefficients = _problem(seed, k, decay)
    whole = np.sqrt(np.sum(energies * coefficients) / (np.sum(coefficients) + outside))
    # As s grows the filter tends to the inverse Gram matrix; below, the length no longer binds.
    inverse = np.sqrt(np.sum(coefficients / energies) / np.sum(coefficients / energies**2))
    least = 0.0 if outside else inverse
    ratio = least + share * (whole - least)
    gain = budget_gain(energies, coefficients, np.asarray(outside), np.asarray(ratio))
    assert ((gain > 0) & (gain <= 1)).all()
    assert (np.diff(gain) <= 1e-12).all()  # the more energy, the less is kept
    change = np.sqrt(np.sum(energies * gain**2 * coefficients))
    length = np.sqrt(np.sum(gain**2 * coefficients) + outside)
    assert change / length == pytest.approx(ratio, rel=1e-5)


@given(k=st.integers(1, 8), decay=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 1000))
def test_a_budget_that_does_not_bind_changes_nothing(k: int, decay: float, seed: int) -> None:
    energies, coefficients = _problem(seed, k, decay)
    gain = budget_gain(energies, coefficients, np.asarray(0.0), np.asarray(2.0))
    assert (gain == 1).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1e-3, 0.05, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("samples", [4, 30])
def test_no_other_direction_gains_more(seed: int, budget: float, samples: int) -> None:
    """Random competitors, from small perturbations on, all taken as far as allowed."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((samples, 6)) * 0.7 ** np.arange(6)
    d = generator.standard_normal((4, 6))
    change = budget * np.linalg.norm(d @ x.T) / np.linalg.norm(d)
    space = row_space([x], samples, spectrum=True)
    best = BudgetFilter(space, np.asarray(change), np.asarray(1.0)).apply(d)
    most = _gain(d, best, x, change, 1.0)
    for scale in np.geomspace(1e-4, 10, 200):
        rival = best + scale * np.linalg.norm(best) * generator.standard_normal(d.shape)
        assert _gain(d, rival, x, change, 1.0) <= most * (1 + 1e-6)


def test_the_filter_in_every_namespace(xp: Any) -> None:
    generator = np.random.default_rng(0)
    x, d = generator.standard_normal((2, 30, 6)), generator.standard_normal((2, 4, 6))

    def filtered(array: Any) -> Any:
        space = row_space([array(x)], 30, spectrum=True)
        return BudgetFilter(space, array(np.asarray(0.5)), array(np.asarray(1.0))).apply(array(d))

    assert to_numpy(filtered(xp.asarray)) == pytest.approx(filtered(np.asarray), abs=1e-12)


@pytest.mark.parametrize("samples", [5, 60], ids=["few samples", "many samples"])
@pytest.mark.parametrize("budget", [1e-3, 0.01, 0.1])
def test_every_layer_stays_within_its_budget(xp: Any, samples: int, budget: float) -> None:
    graph = MLPGraph(xp, (6, 20, 15, 3), samples=samples)
    before = {i: to_numpy(v).copy() for i, v in enumerate(graph.values)}
    lin = graph.linearize()
    config = TeleportConfig(projection="budget", budget=budget, radius=0.3, max_loss_change=1e9)
    report = teleport(graph, config)
    assert report.accepted
    moved = 0
    for layer in report.layers:
        assert layer.output_change <= layer.output_change_bound * (1 + 1e-9)
        k = 2 * int(layer.name[5])
        inputs, output = to_numpy(lin.sites[k // 2].inputs), float(lin.sites[k // 2].output_norm)
        w = to_numpy(graph.values[k]) - before[k]
        b = to_numpy(graph.values[k + 1]) - before[k + 1]
        change = np.linalg.norm(inputs @ w.T + b) / output
        assert change <= budget * (1 + 1e-6)
        assert layer.moved <= 0.3 * (1 + 1e-6)
        if layer.moved:
            moved += 1
            if samples == 60:  # nothing is free: either the budget or the radius binds
                binds = change >= 0.99 * budget or layer.moved >= 0.99 * 0.3
                assert binds
                assert layer.output_change == pytest.approx(change, rel=1e-6)
    assert moved == 2


def test_an_exact_null_space_is_used_where_there_is_one() -> None:
    """With clearly fewer samples than inputs the budget projection is the exact one."""
    results = []
    for projection in ("budget", "threshold"):
        graph = MLPGraph(np, (6, 40, 40, 3), samples=5)
        loss = float(graph.loss())
        config = TeleportConfig(projection=projection, radius=0.2)  # type: ignore[arg-type]
        assert teleport(graph, config).accepted
        assert float(graph.loss()) == pytest.approx(loss, rel=1e-12)
        results.append(np.concatenate([v.reshape(-1) for v in graph.values]))
    assert (results[0] == results[1]).all()
