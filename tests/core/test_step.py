"""How far a move goes, whether it stays, what it costs; and the same on two replicas."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from helpers.mlp_graph import MLPGraph

from nullport import TeleportConfig, TeleportReport, teleport
from nullport._objective import pull
from nullport._report import Cause
from nullport._step import radius_of
from nullport._verdict import Look, shorter, verdict
from nullport.network import Collective

FORWARD = KERNEL = 1 / 3


@pytest.mark.parametrize(("layers", "radius"), [(1, 0.3), (4, 0.3), (5, 0.26), (65, 0.02)])
def test_the_radius_is_shared_out_over_depth(layers: int, radius: float) -> None:
    assert radius_of(TeleportConfig(), layers) == pytest.approx(radius)
    assert radius_of(TeleportConfig(radius=0.7), layers) == 0.7


def _look(loss: float = 1.0, norm: float = 1.0, **more: float) -> Look:
    return Look(*map(np.float64, (loss, norm)), **{k: np.float64(v) for k, v in more.items()})


@pytest.mark.parametrize(
    ("after", "optimizer", "cause"),
    [
        (_look(1.0499), False, Cause.NONE),
        (_look(1.0501), False, Cause.LOSS),
        (_look(np.nan), False, Cause.LOSS),
        (_look(1.0, np.inf), False, Cause.GRADIENT),
        (_look(1.0, 4.0), False, Cause.NONE),
        (_look(1.0, 4.01), False, Cause.GAIN),
        (_look(1.0, 4.01), True, Cause.NONE),
        (_look(1.0, 2.0, stepped=0.5, promised=1.0), True, Cause.NONE),
        (_look(1.0, 2.0, stepped=0.501, promised=1.0), True, Cause.ARMIJO),
        (_look(1.0, 2.0, guard=0.99), True, Cause.NONE),
        (_look(1.0, 2.0, guard=1.0), True, Cause.GUARD),
        (_look(1.0, 2.0, guard=1.0499), False, Cause.NONE),
        (_look(1.0, 2.0, guard=1.0501), False, Cause.GUARD),
    ],
)
def test_verdicts(after: Look, optimizer: bool, cause: Cause) -> None:
    before = _look(1.0, 1.0, guard=1.0)
    assert int(verdict(before, after, TeleportConfig(), optimizer=optimizer)) == cause


def test_the_allowed_rise_is_relative_to_the_loss() -> None:
    config = TeleportConfig(max_loss_change=0.1)
    for loss in (1e-6, 1.0, 1e6):
        assert int(verdict(_look(loss), _look(1.09 * loss), config, optimizer=False)) == 0
        assert int(verdict(_look(loss), _look(1.11 * loss), config, optimizer=False)) == Cause.LOSS
    assert int(verdict(_look(-1.0), _look(-0.91), config, optimizer=False)) == 0
    assert int(verdict(_look(-1.0), _look(-0.89), config, optimizer=False)) == Cause.LOSS


def test_how_much_shorter_a_second_try_is() -> None:
    config, before = TeleportConfig(), _look()
    assert float(shorter(before, _look(2.0), np.int32(Cause.LOSS), config)) == 0.5
    assert float(shorter(before, _look(1.0, 16.0), np.int32(Cause.GAIN), config)) == 0.225
    assert float(shorter(before, _look(1.0, 1e9), np.int32(Cause.GAIN), config)) == 0.05
    for cause in (Cause.NONE, Cause.GUARD, Cause.STILL, Cause.SCREEN):
        assert float(shorter(before, _look(), np.int32(cause), config)) == 0.0


def _net(**options: Any) -> MLPGraph:
    return MLPGraph(np, (6, 40, 40, 40, 3), samples=4, **options)


FD = {"projection": "threshold", "tangent": "fd", "max_loss_change": 1e9}


def test_a_move_that_goes_too_far_is_tried_once_more_shorter() -> None:
    free = teleport(_net(), TeleportConfig(radius=2.0, max_gain=1e9, **FD))
    gain = free.grad_norm_after / free.grad_norm_before
    graph = _net()
    report = teleport(graph, TeleportConfig(radius=2.0, max_gain=gain * 0.9, **FD))
    assert report.accepted, report.reason
    assert report.radius < 2.0
    assert graph.kept == [report.radius / 2.0, 1.0]
    assert report.grad_norm_after <= gain * 0.9 * report.grad_norm_before
    assert report.cost == pytest.approx(free.cost + 1)  # one gradient more
    moved = [layer.moved for layer in report.layers if layer.moved > 0]
    assert moved == pytest.approx([report.radius] * len(moved))


def test_refused_after_both_tries_nothing_has_changed() -> None:
    graph = _net()
    start = graph.weights()
    report = teleport(graph, TeleportConfig(radius=2.0, max_gain=1 + 1e-12, **FD))
    assert report.cause == Cause.GAIN
    assert graph.kept[-1] == 0.0
    assert len(graph.kept) == 2
    assert all(a is b for a, b in zip(graph.values, start, strict=True))
    assert all(layer.moved == 0 for layer in report.layers)


@pytest.mark.parametrize(
    ("objective", "cost"),
    [
        ("grad_norm", 2 + FORWARD + KERNEL),
        ("weight_norm", 2.0),
        ("look_ahead", 3 + FORWARD + KERNEL),
        ("others", 3.0),
        ("sharpness", 3 + FORWARD + KERNEL),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_charged_is_what_was_done(objective: str, cost: float, steps: int) -> None:
    graph = MLPGraph(np, (6, 900, 900, 3), samples=1, rate=1e-6, guard_samples=2, other_samples=2)
    config = TeleportConfig(objective=objective, steps=steps, radius=1e-3, **FD)
    report = teleport(graph, config)
    assert report.cause in (Cause.NONE, Cause.GUARD)
    judged = objective in ("look_ahead", "others")
    looks = 2 * (1 if judged else 2) * FORWARD  # the guard, and without a judge the step too
    again = (steps - 1) * (cost - 1)
    assert report.cost == pytest.approx(cost + looks + again, abs=0.02)
    passes = graph.counts
    assert passes["linearize"] == steps
    assert passes["gradient"] == 1 + steps * (objective in ("look_ahead", "others", "sharpness"))


def _direction(graph: MLPGraph, objective: str) -> list[Any]:
    start = graph.weights()
    teleport(graph, TeleportConfig(objective=objective, radius=1e-6, **FD))
    return [b - a for a, b in zip(start, graph.values, strict=True)]


@pytest.mark.parametrize("objective", ["look_ahead", "others", "sharpness", "decrease"])
def test_directions_of_objectives_against_differences(objective: str) -> None:
    """The move is along the projected gradient of the objective, by central differences."""
    graph = MLPGraph(np, (5, 20, 16, 2), samples=3, rate=0.3, decay=0.1, other_samples=6, seed=2)
    start = graph.weights()
    u = graph.optimizer_step(graph.gradient()[1])

    def phi(w: list[Any]) -> float:
        loss, g = graph.differentiate(w)[:2]
        if objective == "look_ahead":
            step = [0.3 * (a + 0.1 * b) for a, b in zip(g, start, strict=True)]
            moved = [a - s for a, s in zip(w, step, strict=True)]
            return -float(graph.differentiate(moved, "others")[0])
        moved = [a - s for a, s in zip(w, u, strict=True)]
        if objective == "others":
            return -float(graph.differentiate(moved, "others")[0])
        slope = sum(float(np.sum(a * b)) for a, b in zip(g, u, strict=True))
        if objective == "decrease":
            return 0.15 * sum(float(np.sum(a * a)) for a in g)
        return -(float(graph.differentiate(moved)[0]) - float(loss) + slope)

    inputs = graph.inputs(start)
    found = _direction(graph, objective)
    for k in (1, 2):
        expected = np.zeros((start[2 * k].shape[0], start[2 * k].shape[1] + 1))
        for index in np.ndindex(expected.shape):
            ends = []
            for sign in (1.0, -1.0):
                w = [a.copy() for a in start]
                place = (2 * k, index) if index[1] < w[2 * k].shape[1] else (2 * k + 1, index[:1])
                w[place[0]][place[1]] += sign * 1e-5
                ends.append(phi(w))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        rows = np.concatenate([inputs[k], np.ones((3, 1))], axis=1)
        free = np.linalg.svd(rows)[2][3:]
        expected = expected @ free.T @ free
        got = np.concatenate([found[2 * k], found[2 * k + 1][:, None]], axis=1)
        cosine = np.sum(got * expected) / np.linalg.norm(got) / np.linalg.norm(expected)
        assert cosine > 1 - 1e-4


def test_weight_norm_shrinks_what_the_data_does_not_see_and_no_further() -> None:
    graph = _net()
    rows = graph.inputs(graph.weights())
    report = teleport(graph, TeleportConfig(objective="weight_norm", radius=50.0, **FD))
    assert report.accepted, report.reason
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
    for k in range(4):
        whole = np.concatenate([graph.values[2 * k], graph.values[2 * k + 1][:, None]], axis=1)
        x = np.concatenate([rows[k], np.ones((4, 1))], axis=1)
        free = np.linalg.svd(x)[2][4:]
        assert np.linalg.norm(whole @ free.T) <= 1e-12 * np.linalg.norm(whole)


@pytest.mark.parametrize("value", [3.0, None, {"a": 1}, np.zeros(3), [None] * 8, [[1.0]] * 8])
def test_a_wrong_objective_is_named_in_one_line(value: Any) -> None:
    graph = _net()
    with pytest.raises(ValueError, match=r"^the objective returned [^\n]*; allowed: 8 finite") as e:
        pull(lambda _: value, graph, graph.gradient()[1])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("scale", [1e25, 1e-30])
def test_a_scaled_loss_moves_as_the_loss_itself(scale: float) -> None:
    class Scaled(MLPGraph):
        def differentiate(self, *args: Any) -> Any:
            c = np.float32(scale)
            loss, gradients, inputs, deltas = super().differentiate(*args)
            return c * loss, [c * g for g in gradients], inputs, [c * d for d in deltas]

    moves = []
    for kind in (MLPGraph, Scaled):
        graph = kind(np, (6, 30, 30, 3), dtype="float32")
        start = graph.weights()
        assert teleport(graph, TeleportConfig(objective="grad_norm", radius=0.1)).accepted
        moves.append(
            np.concatenate([(b - a).ravel() for a, b in zip(start, graph.values, strict=True)])
        )
    a, b = (m.astype(np.float64) for m in moves)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


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


def _replicas(samples: int, config: TeleportConfig, **options: Any) -> tuple[Any, Any]:
    board, barrier = [None, None], threading.Barrier(2)
    graphs: list[MLPGraph] = []
    reports: list[Any] = [None, None]
    for me in range(2):
        graph = MLPGraph(np, (6, 24, 20, 3), samples=samples, **options)
        for name, (x, y) in graph.data.items():
            half = len(x) // 2
            graph.data[name] = x[me * half :][:half], y[me * half :][:half]
        graph.collective = Exchange(me, board, barrier)
        graphs.append(graph)

    def work(me: int) -> None:
        try:
            reports[me] = teleport(graphs[me], config)
        except BaseException as error:
            reports[me] = error
            barrier.abort()

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return graphs, reports


@pytest.mark.parametrize("samples", [8, 24, 60], ids=["few", "some", "many"])
@pytest.mark.parametrize("name", ["exact", "threshold", "budget", "look_ahead"])
def test_two_replicas_are_one_graph_with_the_joint_batch(samples: int, name: str) -> None:
    options: dict[str, Any] = {"exact": {"projection": "threshold"}, "budget": {}}.get(name, {})
    if name == "threshold":
        options = {"projection": "threshold", "threshold": 0.05}
    config = TeleportConfig(radius=0.1, tangent="fd", max_loss_change=1e9, **options)
    given: dict[str, Any] = {"guard_samples": 8, "other_samples": 8, "rate": 0.05}
    given = given if name == "look_ahead" else {}
    whole = MLPGraph(np, (6, 24, 20, 3), samples=samples, **given)
    expected = teleport(whole, config)
    graphs, reports = _replicas(samples, config, **given)
    for graph, report in zip(graphs, reports, strict=True):
        assert isinstance(report, TeleportReport), report
        assert report.accepted == expected.accepted
        assert report.grad_norm_after == pytest.approx(expected.grad_norm_after, rel=1e-6)
        for mine, theirs in zip(graph.values, whole.values, strict=True):
            # A difference of two forward passes has 1e-16 / 1e-7 of noise.
            assert np.allclose(mine, theirs, rtol=0, atol=1e-7)
        for mine, theirs in zip(graph.values, graphs[0].values, strict=True):
            assert np.array_equal(mine, theirs)
        for a, b in zip(report.layers, expected.layers, strict=True):
            assert (a.rank, a.null_dim, a.samples) == (b.rank, b.null_dim, b.samples)
