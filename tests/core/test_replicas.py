"""Two replicas in two threads, each with half of the samples, against one graph with all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, to_numpy
from helpers.mlp_graph import ForwardMLPGraph, numbers, unmoved

from nullport import TeleportConfig, TeleportReport, teleport
from nullport._nullspace import null_space
from nullport._objective import shrinkage, vanishing
from nullport._report import Cause
from nullport.network import Collective, DenseSite

SIZES = (6, 23, 19, 3)


class Exchange(Collective):
    """One of two replicas in threads: what they hold is exchanged at a barrier."""

    size = 2

    def __init__(self, me: int, board: list[Any], barrier: threading.Barrier) -> None:
        self._me, self._board, self._barrier = me, board, barrier

    def _all(self, x: Any) -> list[Any]:
        self._board[self._me] = x
        self._barrier.wait(timeout=60)
        found = list(self._board)
        self._barrier.wait(timeout=60)
        return found

    def sum(self, x: Any) -> Any:
        a, b = self._all(x)
        return a + b

    def rows(self, x: Any) -> Any:
        return np.concatenate(self._all(x), axis=-2)

    def agree(self, flag: Any) -> Any:
        a, b = self._all(flag)
        return a | b

    def gather(self, value: Any) -> list[Any]:
        return self._all(value)


def both(work: Callable[[int, Collective], Any]) -> list[Any]:
    """Run ``work(me, collective)`` for two replicas at once, and return what they return."""
    board, barrier = [None, None], threading.Barrier(2)
    found: list[Any] = [None, None]

    def run(me: int) -> None:
        try:
            found[me] = work(me, Exchange(me, board, barrier))
        except BaseException as error:
            found[me] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, threading.BrokenBarrierError):
            raise one
    return found


def halves(
    whole: ForwardMLPGraph, config: TeleportConfig, sizes: tuple[int, ...] = SIZES
) -> tuple[list[Any], list[Any]]:
    """Teleport two replicas of a graph, each with every second sample of all batches."""
    graphs = []
    for me in range(2):
        graph = ForwardMLPGraph(np, sizes)
        graph.__dict__.update(vars(whole))
        graph._weights, graph._start, graph.kept = whole.weights(), whole.weights(), []
        graph.counts = dict.fromkeys(whole.counts, 0)
        graph.data = {name: (x[me::2], y[me::2]) for name, (x, y) in whole.data.items()}
        graphs.append(graph)

    def work(me: int, collective: Collective) -> TeleportReport:
        graphs[me].collective = collective
        return teleport(graphs[me], config)

    return graphs, both(work)


def check(
    whole: ForwardMLPGraph, config: TeleportConfig, sizes: tuple[int, ...] = SIZES
) -> TeleportReport:
    """Compare weights and everything in the report."""
    graphs, reports = halves(whole, config, sizes)
    expected = teleport(whole, config)
    for graph, report in zip(graphs, reports, strict=True):
        for mine, theirs in zip(graph.values, whole.values, strict=True):
            assert mine.dtype == theirs.dtype
            assert np.abs(mine - theirs).max() <= 1e-12
        assert all(map(np.array_equal, graph.values, graphs[0].values))
        assert graph.kept == pytest.approx(whole.kept, rel=1e-12)
        assert graph.counts == whole.counts
        for f in fields(report):
            mine, theirs = getattr(report, f.name), getattr(expected, f.name)
            if f.name == "layers":
                for a, b in zip(mine, theirs, strict=True):
                    exact = (a.name, a.kind, a.in_features, a.samples, a.hold, a.note)
                    assert exact == (b.name, b.kind, b.in_features, b.samples, b.hold, b.note)
                    assert (a.rank, a.null_dim) == (b.rank, b.null_dim)
                    assert a.moved == pytest.approx(b.moved, rel=1e-12)
                    assert a.output_change_bound == pytest.approx(b.output_change_bound, rel=1e-6)
                    # On rows that are sampled, and where nothing changes, it is rounding.
                    assert a.output_change == pytest.approx(b.output_change, rel=1e-9, abs=1e-14)
            elif isinstance(theirs, float) and f.name != "seconds":
                assert mine == pytest.approx(theirs, rel=1e-12), f.name
            elif f.name != "seconds":
                assert mine == theirs, f.name
    return expected


CONFIGS: dict[str, dict[str, Any]] = {
    "exact": {"projection": "threshold"},
    "threshold": {"projection": "threshold", "threshold": 0.05},
    "budget": {},
    "gain": {"projection": lambda shares: 1 / (1 + 30 * shares)},
    "none": {"projection": "none"},
}
GIVEN = {"guard_samples": 8, "other_samples": 6, "rate": 0.01, "decay": 0.1}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("samples", [6, 20, 24, 60], ids=["few", "as one", "as another", "many"])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_replicas_are_one_graph_with_all_samples(name: str, samples: int, steps: int) -> None:
    """With fewer samples than a layer's inputs (24 and 20), as many, and more."""
    config = TeleportConfig(
        radius=0.05, tangent="jvp", max_loss_change=1e9, max_gain=1e9, steps=steps, **CONFIGS[name]
    )
    report = check(ForwardMLPGraph(np, SIZES, samples=samples), config)
    nothing = name == "exact" and samples >= 24
    assert report.cause == (Cause.STILL if nothing else Cause.NONE)


@pytest.mark.parametrize("samples", [6, 60])
@pytest.mark.parametrize(
    "objective", ["look_ahead", "others", "sharpness", "decrease", "weight_norm", "grad_norm"]
)
def test_with_an_optimizer_and_other_samples(objective: str, samples: int) -> None:
    config = TeleportConfig(objective=objective, radius=0.02, tangent="jvp", max_loss_change=1e9)
    check(ForwardMLPGraph(np, SIZES, samples=samples, seed=1, **GIVEN), config)


@pytest.mark.parametrize("samples", [6, 7, 60])
@pytest.mark.parametrize("objective", ["amplify", "renew"])
def test_replicas_agree_on_the_scale_that_layers_lack(objective: str, samples: int) -> None:
    """With layers of one width, whose inputs only their norms tell apart.

    Of seven samples one replica has four: no mean of the seven, but both have to do the same.
    """
    sizes = (6, 23, 23, 23, 3)
    graph = ForwardMLPGraph(np, sizes, samples=samples)
    graph._weights = [w * 0.3 for w in graph._weights]
    graph._start = graph.weights()
    config = TeleportConfig(objective=objective, max_loss_change=1e9)
    if samples % 2:
        graphs, (report, _) = halves(graph, config, sizes)
        assert all(map(np.array_equal, graphs[0].values, graphs[1].values))
    else:
        report = check(graph, config, sizes)
    assert report.accepted
    assert any(layer.moved > 0 for layer in report.layers)


def test_a_replica_without_samples_takes_the_scales_of_the_other() -> None:
    rng = np.random.default_rng(0)
    x, deltas = rng.standard_normal((4, 5)), [rng.standard_normal((4, 5)) * f for f in (1, 8, 64)]

    def sites(n: int) -> list[DenseSite]:
        one = np.asarray(1.0)
        return [DenseSite("dense", (i + 1) * x[:n], d[:n], one) for i, d in enumerate(deltas)]

    def work(me: int, together: Collective) -> Any:
        own = sites(4 * me)
        return shrinkage(own, together), vanishing(own, together)

    alone = sites(4)
    for scales, factor in both(work):
        expected = shrinkage(alone, Collective())
        assert np.allclose(scales, expected, rtol=1e-12, atol=0)
        assert factor == pytest.approx(vanishing(alone, Collective()), rel=1e-12)
        assert factor > 10


def test_replicas_that_ran_unlike_maps_lack_nothing() -> None:
    rng, one = np.random.default_rng(0), np.asarray(1.0)
    x, deltas = rng.standard_normal((4, 5)), [rng.standard_normal((4, 5)) * f for f in (1, 8, 64)]
    own = [DenseSite("dense", x, d, one) for d in deltas]

    def work(me: int, together: Collective) -> Any:
        return vanishing(own[: 2 + me], together)

    assert both(work) == [1.0, 1.0]


def test_rows_that_the_replicas_have_in_common_cost_no_freedom() -> None:
    graph = ForwardMLPGraph(np, SIZES, samples=8)
    graph.data["batch"] = tuple(np.repeat(a[:4], 2, axis=0) for a in graph.data["batch"])
    report = check(graph, TeleportConfig(projection="threshold", radius=0.1, tangent="jvp"))
    assert [layer.rank for layer in report.layers] == [4, 4, 4]


@pytest.mark.parametrize("gain", [1.0001, 1.05])
def test_a_second_shorter_try_is_made_together(gain: float) -> None:
    config = TeleportConfig(projection="threshold", radius=1.0, tangent="jvp", max_gain=gain)
    graph = ForwardMLPGraph(np, SIZES, samples=6)
    report = check(graph, config)
    assert report.radius < 1.0
    assert len(graph.kept) == 2


def test_what_is_refused_is_undone_everywhere() -> None:
    graph = ForwardMLPGraph(np, SIZES, samples=6)
    before = numbers(graph.values)
    config = TeleportConfig(projection="threshold", radius=1.0, tangent="jvp", max_gain=1 + 1e-9)
    graphs, reports = halves(graph, config)
    assert [report.cause for report in reports] == [Cause.GAIN] * 2
    assert all(unmoved(one, before) for one in graphs)


def test_a_difference_is_alike_but_for_its_noise() -> None:
    graph = ForwardMLPGraph(np, SIZES, samples=6)
    config = TeleportConfig(projection="threshold", radius=0.1, tangent="fd")
    graphs, _ = halves(graph, config)
    teleport(graph, config)
    for one in graphs:
        for mine, theirs in zip(one.values, graph.values, strict=True):
            assert np.abs(mine - theirs).max() <= 1e-7  # eps / 1e-7, scaled up to the radius


@pytest.mark.parametrize("rows", [(0, 4), (4, 0), (1, 5), (0, 30), (30, 1), (20, 20)])
@pytest.mark.parametrize("name", ["exact", "threshold", "budget", "gain"])
def test_replicas_may_have_unlike_numbers_of_rows_or_none(rows: Any, name: str) -> None:
    """As experts and packed sequences do. Nobody waits for a replica that does not come."""
    rng = np.random.default_rng(3)
    parts, d = [rng.standard_normal((n, 9)) for n in rows], rng.standard_normal((5, 9))
    config, one, n = TeleportConfig(**CONFIGS[name]), np.asarray(1.0), sum(rows)
    how: dict[str, Any] = {"bias": False, "samples": n, "output_norm": one, "length": one}

    def space(x: Any, together: Collective) -> Any:
        return null_space([DenseSite("dense", x, None, one)], 9, config, together=together, **how)

    whole = space(np.concatenate(parts), Collective())
    expected = whole.project(d)[0]
    for found in both(lambda me, collective: space(parts[me], collective)):
        assert not isinstance(found, BaseException)
        assert int(found.free) == int(whole.free)
        assert float(found.size) == pytest.approx(float(whole.size), rel=1e-12)
        assert np.abs(found.project(d)[0] - expected).max() <= 1e-11
    if name == "exact":
        assert np.abs(expected - d @ null_projector(np.concatenate(parts))).max() <= 1e-11
    assert to_numpy(expected).dtype == np.float64


def test_a_weight_that_one_replica_does_not_use_stays_and_its_gradient_counts() -> None:
    """As with branches that depend on the sample: the mean has a zero in its place."""
    g, weights = np.asarray([2.0, 4.0]), [np.ones(2), np.ones(3), np.ones(1)]

    def work(me: int, together: Collective) -> Any:
        return together.gradients([g if me else None, None, g[:1]], weights)

    for found in both(work):
        assert np.array_equal(found[0], g / 2)
        assert found[1] is None
        assert np.array_equal(found[2], g[:1])


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_replicas_that_differ_are_told_apart(bits: int) -> None:
    """Also by a step that keeps the sum of all entries."""
    start = np.arange(1.0, 13.0, dtype=f"float{bits}").reshape(3, 4)
    step = np.zeros_like(start)
    step[0, :2] = 4096 * np.finfo(start.dtype).eps * np.asarray([1.0, -1.0])

    def work(me: int, together: Collective) -> Any:
        other = start + step * me
        return bool(together.apart([start, start])), bool(together.apart([start, other]))

    assert both(work) == [(False, True)] * 2


def test_replicas_that_differ_are_refused_and_say_so() -> None:
    graph = ForwardMLPGraph(np, SIZES, samples=6)
    graphs = [ForwardMLPGraph(np, SIZES, samples=6), graph]
    graph._weights[0] = graph._start[0] = graph._weights[0] + 1e-12
    before = [numbers(one.values) for one in graphs]

    def work(me: int, collective: Collective) -> TeleportReport:
        graphs[me].collective = collective
        return teleport(graphs[me], TeleportConfig(projection="threshold"))

    for report in both(work):
        assert report.cause == Cause.APART
        assert report.reason == "the replicas do not hold the same weights"
    assert all(unmoved(*pair) for pair in zip(graphs, before, strict=True))


def test_layers_in_different_orders_are_an_error() -> None:
    """Replicas would add the sums of one layer to those of another."""
    from nullport._capture import Block, _alike
    from nullport.network import Linearization, matrix

    one, layout = np.asarray(1.0), matrix((), 2, 3)
    sites = [DenseSite("dense", np.ones((1, 3)), np.ones((1, 2)), one) for _ in range(2)]
    lin = Linearization(one, [None, None], sites)

    def work(me: int, together: Collective) -> Any:
        blocks = [Block("a", 0, layout, (me,)), Block("b", 1, layout, (1 - me,))]
        with pytest.raises(ValueError, match="run their layers in different orders"):
            _alike(blocks, lin, together)
        return _alike([blocks[0]] if me else blocks, lin, together)

    for kept, left in both(work):
        assert [block.name for block in kept] == ["a"]
        assert set(left) <= {"b"}
