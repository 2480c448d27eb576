"""Networks that are stuck: what amplifying and renewing do, and where they do nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy, with_ones
from helpers.mlp_graph import MLPGraph, numbers, unmoved

from nullport import Rule, TeleportConfig, Teleporter, TeleportReport, inspect, teleport
from nullport._capture import find_layers, lazy_norms
from nullport._objective import (
    HEALTHY,
    MOST,
    UNSEEN,
    _lacking,
    chosen,
    follows,
    shrinkage,
    vanishing,
)
from nullport._report import Cause, Hold
from nullport.network import Collective, DenseSite

DEEP = (20, *(40,) * 8, 3)


def graph_of(
    xp: Any = np,
    *,
    scale: float = 0.35,
    sizes: Any = DEEP,
    zeroed_guard: bool = False,
    **given: Any,
) -> MLPGraph:
    """Return a tanh network whose weights are too small by a factor, biases included.

    A zeroed guard has a loss of 0 at these weights, so that any move raises it.
    """
    given |= {"guard_samples": 5} if zeroed_guard else {}
    graph = MLPGraph(xp, sizes, **{"samples": 6, "seed": 1, **given})
    graph._weights = [scale * w for w in graph._weights]
    graph._start = list(graph._weights)
    if zeroed_guard:
        x = 10 * graph.data["guard"][0]
        graph.data["guard"] = x, graph.forward(graph.values, x)[1]
    return graph


def spectrum(x: Any) -> tuple[Any, Any]:
    rows = with_ones(x)
    return np.linalg.eigh(rows.T @ rows)


def unseen(x: Any, share: float) -> Any:
    """Return the projector on trailing directions that hold at most a share, by a dense SVD."""
    energies, basis = spectrum(x)
    free = basis[:, np.cumsum(np.clip(energies, 0, None)) <= share * energies.sum()]
    return free @ free.T


def cotangent_norms(graph: MLPGraph) -> list[float]:
    return [float(np.linalg.norm(d)) for d in graph.differentiate(graph.values)[3]]


def whole(values: list[Any], k: int) -> Any:
    return np.concatenate([to_numpy(values[2 * k]), to_numpy(values[2 * k + 1])[:, None]], axis=1)


def test_amplify_adds_what_the_data_does_not_see_as_often_as_cotangents_shrink() -> None:
    graph = graph_of()
    start, norms = numbers(graph.values), cotangent_norms(graph)
    inputs = graph.forward(start, graph.data["batch"][0])[0]
    report = teleport(graph, TeleportConfig(objective="amplify"))
    assert report.accepted, report.reason
    after = numbers(graph.values)
    for k in range(1, len(DEEP) - 1):
        s = norms[k] / norms[k - 1]
        assert s > HEALTHY
        expected = whole(start, k) @ (np.eye(DEEP[k] + 1) + (s - 1) * unseen(inputs[k], UNSEEN))
        np.testing.assert_allclose(whole(after, k), expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(whole(after, 0), whole(start, 0))
    assert report.layers[0].hold == Hold.HEALTHY


def test_it_keeps_the_loss_and_brings_the_gradient_back(xp: Any) -> None:
    graph = graph_of(xp)
    report = teleport(graph, TeleportConfig(objective="amplify"))
    assert report.accepted
    assert report.loss_after == pytest.approx(report.loss_before, rel=0.01)
    norms = cotangent_norms(graph) if xp is np else None
    assert report.grad_norm_after >= report.grad_norm_before
    if norms is not None:
        assert max(norms) / min(norms) < 5
    assert [w.dtype for w in graph.values] == [w.dtype for w in graph.start]


def test_the_certificate_holds_for_each_layer() -> None:
    graph = graph_of()
    start = numbers(graph.values)
    inputs = graph.forward(start, graph.data["batch"][0])[0]
    report = teleport(graph, TeleportConfig(objective="amplify"))
    for k, layer in enumerate(report.layers):
        rows = with_ones(inputs[k])
        change = (whole(numbers(graph.values), k) - whole(start, k)) @ rows.T
        size = np.linalg.norm(inputs[k] @ start[2 * k].T)
        assert np.linalg.norm(change) / size <= layer.output_change_bound + 1e-300


def test_renew_puts_fresh_entries_of_that_scale_where_nothing_is_seen() -> None:
    graph = graph_of()
    start, norms = numbers(graph.values), cotangent_norms(graph)
    inputs = graph.forward(start, graph.data["batch"][0])[0]
    report = teleport(graph, TeleportConfig(objective="renew"))
    assert report.accepted, report.reason
    after = numbers(graph.values)
    for k in range(1, len(DEEP) - 2):
        free, s = unseen(inputs[k], UNSEEN), norms[k] / norms[k - 1]
        old, new = whole(start, k), whole(after, k)
        np.testing.assert_allclose((new - old) @ (np.eye(len(free)) - free), 0, atol=1e-12)
        kept = abs(np.sum((new @ free) * (old @ free))) / np.sum((old @ free) ** 2)
        assert kept < 0.3 * s  # of a fresh matrix, not of the old one
        fresh = np.linalg.norm((new @ free)[:, :-1]) / np.sqrt(DEEP[k + 1] * np.trace(free))
        assert fresh == pytest.approx(s * np.linalg.norm(start[2 * k]) / 40, rel=0.15)


def test_a_healthy_network_is_left_alone() -> None:
    graph = MLPGraph(np, DEEP, samples=6, seed=1)
    report = teleport(graph, TeleportConfig(objective="amplify"))
    assert report.cause == Cause.STILL
    assert {layer.hold for layer in report.layers} == {Hold.HEALTHY}
    assert unmoved(graph, graph.start)


def test_scales_are_bounded() -> None:
    graph = graph_of(scale=1e-3, sizes=(20, 40, 40, 3))
    start = numbers(graph.values)
    report = teleport(graph, TeleportConfig(objective="amplify", max_loss_change=1e9))
    assert report.accepted
    for layer, old, new in zip(report.layers, start[::2], graph.values[::2], strict=True):
        assert layer.moved <= MOST - 1 + 1e-9
        assert np.linalg.norm(new) <= MOST * np.linalg.norm(old) * (1 + 1e-4)


def test_a_radius_of_ones_own_bounds_the_length() -> None:
    report = teleport(graph_of(), TeleportConfig(objective="amplify", radius=0.1))
    moved = [layer.moved for layer in report.layers if layer.moved]
    assert moved
    assert max(moved) == pytest.approx(0.1)


@pytest.mark.parametrize("objective", ["amplify", "renew"])
def test_what_raises_the_loss_of_other_samples_is_undone(objective: str) -> None:
    graph = graph_of(zeroed_guard=True)
    report = teleport(graph, TeleportConfig(objective=objective))
    assert report.cause == Cause.GUARD
    assert unmoved(graph, graph.start)


def test_auto_amplifies_where_gradients_vanish_and_else_looks_ahead() -> None:
    given = {"rate": 0.1, "other_samples": 4, "guard_samples": 4}
    for graph, expected in (
        (graph_of(**given), "amplify"),
        (MLPGraph(np, DEEP, samples=6, **given), "look_ahead"),
        (MLPGraph(np, DEEP, samples=6), "grad_norm"),
        (graph_of(), "grad_norm"),
    ):
        shrunk = vanishing(graph.linearize().sites, Collective())
        assert chosen("auto", graph, shrunk) == expected
    assert chosen("others", graph, shrunk) == "others"


class Normalising(MLPGraph):
    """Its optimizer divides by the size of the gradient, as Adam and Lion do."""

    def optimizer_step(self, gradients: Any) -> list[Any]:
        return [None if g is None else self.rate * np.sign(g) for g in gradients]


def test_nothing_is_tried_where_the_optimizer_divides_by_the_size_of_the_gradient() -> None:
    given = {"rate": 1e-4, "other_samples": 4, "guard_samples": 4, "samples": 6}
    graph = Normalising(np, DEEP, **given)
    report = teleport(graph)
    assert report.cause == Cause.HEALTHY
    assert "nothing to gain" in report.reason
    assert report.cost <= 2
    assert unmoved(graph, graph.start)
    assert not follows(graph, graph.gradient()[1])
    plain = MLPGraph(np, DEEP, **given)
    assert follows(plain, plain.gradient()[1])
    asked = teleport(Normalising(np, DEEP, **given), TeleportConfig(objective="look_ahead"))
    assert asked.cause != Cause.HEALTHY


def site(inputs: Any, cotangent: Any) -> DenseSite:
    return DenseSite("dense", inputs, cotangent, np.asarray(1.0))


def test_maps_that_share_their_inputs_count_as_one() -> None:
    """A query, a key and a value: what goes down is the sum of theirs."""
    generator = np.random.default_rng(0)
    below, x, y = (generator.standard_normal((5, 4)) for _ in range(3))
    q, k, v = (scale * generator.standard_normal((5, 4)) for scale in (1e-6, 1e-6, 1.0))
    sites = [site(below, 0.1 * y), site(x, q), site(x, k), site(x, v), site(y, y)]
    found = [float(s) for s in shrinkage(sites, Collective())]
    joint = np.sqrt(sum(np.sum(d**2) for d in (q, k, v)))
    below_it = joint / (0.1 * np.linalg.norm(y))
    assert found == pytest.approx([1, *[below_it] * 3, np.linalg.norm(y) / joint])


def test_a_site_without_a_cotangent_is_passed_over() -> None:
    x, y = np.ones((3, 2)), np.full((3, 2), 2.0)
    sites = [site(x, x), site(y, None), site(x, 4 * x)]
    assert [float(s) for s in shrinkage(sites, Collective())] == pytest.approx([1, 1, 4])


def test_residual_connections_carry_gradients_past_maps_that_shrink_them() -> None:
    """The largest cotangent of the lower half is what tells: branches may have small ones."""
    x = np.ones((3, 2))
    branches = [site(x * i, x * d) for i, d in enumerate((0.9, 0.01, 1.0, 0.01, 1.0), start=1)]
    chain = [site(x * i, x * 3.0**i) for i in range(1, 6)]
    assert vanishing(branches, Collective()) < 1.2
    assert vanishing(chain, Collective()) == pytest.approx(3.0**3)


def test_pooling_between_two_maps_is_no_lack_of_scale() -> None:
    """Where the numbers of rows differ, no weight is amplified beyond He's scale."""
    graph = graph_of(scale=1.0)

    class Pooled(DenseSite):
        @property
        def samples(self) -> int:
            return 7 * self.inputs.shape[-2]

    lin = graph.linearize()
    first = lin.sites[0]
    shrunk = Pooled("dense", first.inputs, 1e-3 * first.cotangent, first.output_norm)
    sites = [shrunk, *lin.sites[1:]]
    config = TeleportConfig()
    layers, _ = find_layers(graph, lin, config, lazy_norms(graph.weights()))
    scales = _lacking(layers, sites, Collective())
    assert float(scales[1]) == 1.0


def test_inspect_describes_it() -> None:
    layers = inspect(graph_of(), TeleportConfig(objective="amplify"))
    assert [layer.reason == "" for layer in layers] == [False, *[True] * 8]


class Loop(Teleporter):
    """A training loop whose batches are graphs."""

    def _graph(self, batch: Any, guard: Any, others: Any) -> MLPGraph:
        return batch


def test_the_loop_says_what_it_sees_and_what_would_help_more() -> None:
    loop = Loop(every=1, judged=False, config=TeleportConfig(objective="amplify"))
    assert (loop.phase, loop.advice) == ("unknown", "")
    norms = cotangent_norms(graph_of())
    loop.step(graph_of(zeroed_guard=True))
    assert loop.last is not None
    assert loop.last.cause == Cause.GUARD
    assert loop.phase == "stuck"
    assert "initialisation" in loop.advice
    assert loop.last.shrinkage == pytest.approx(norms[-1] / norms[len(norms) // 2 - 1])
    assert "stuck" in loop.summary()
    loop.step(graph_of())  # frees it
    assert loop.last.accepted
    assert (loop.phase, loop.advice) == ("training", "")
    for _ in range(3):
        loop.step(MLPGraph(np, DEEP, samples=6, seed=1))  # the same loss each time
    assert loop.phase == "converged"


def test_a_step_that_overshoots_and_small_rates_are_told() -> None:
    given = {"other_samples": 4, "guard_samples": 4, "samples": 6}
    loop = Loop(every=1, judged=False, config=TeleportConfig(objective="grad_norm"))
    loop.step(MLPGraph(np, DEEP, rate=1e3, **given))
    assert "smaller learning rate" in loop.advice
    ahead = TeleportReport(1.0, 1.0, 1.0, 1.0, 0.1, tangent="fd", shrinkage=1.0)
    loop.history = [replace(ahead, loss_before=loss) for loss in (1.0, 0.8, 0.6)]
    assert "larger learning rate" in loop.advice
    loop.history[-1] = replace(ahead, cause=Cause.GUARD)
    assert loop.advice == ""


def test_refusals_of_a_network_that_is_stuck_do_not_end_the_tries() -> None:
    rule = Rule.parse("auto")
    state = rule.start(np.float64(0.0))
    refused = rule.update(state, np.bool_(False), 2.0)
    stuck = rule.update(state, np.bool_(False), 2.0, np.bool_(True))
    assert (float(refused.wasted), float(stuck.wasted)) == (2.0, 0.0)
    assert float(stuck.interval) < float(refused.interval)
    assert float(stuck.spent) == float(refused.spent)


def test_a_mean_over_rows_is_no_plateau() -> None:
    """As in a network that ends in global pooling: every row gets a share of the cotangent."""
    x, pooled = np.ones((64, 2)), np.ones((1, 2))
    below = [site(x * i, x / 64) for i in range(1, 5)]
    assert float(vanishing([*below, site(pooled, pooled)], Collective())) == pytest.approx(1.0)


def test_cotangents_whose_squares_underflow_are_told_apart() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    sites = [site(x * i, x * np.float32(10.0 ** (5 * i - 35))) for i in range(1, 6)]
    found = [float(s) for s in shrinkage(sites, Collective())]
    assert found == pytest.approx([1, *[1e5] * 4], rel=1e-4)


def test_the_growth_of_the_gradient_is_not_bounded_where_it_had_vanished() -> None:
    """Without an optimizer, too: 4 is the largest growth of every other objective."""
    graph = graph_of(scale=0.2)
    report = teleport(graph, TeleportConfig(objective="amplify"))
    assert report.accepted, report.reason
    assert report.grad_norm_after > 4 * report.grad_norm_before
