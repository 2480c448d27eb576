"""How far a move goes, what that does to outputs, the second try, and what a teleport costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, to_numpy, with_ones
from helpers.mlp_graph import ForwardMLPGraph, MLPGraph, numbers, unmoved

from nullport import Engine, TeleportConfig, teleport
from nullport._capture import Block, Layer
from nullport._report import Cause, Hold
from nullport._step import Found, Moved, radius_of
from nullport._verdict import MARGIN
from nullport.network import matrix

FORWARD = KERNEL = 1 / 3


@pytest.mark.parametrize(("layers", "radius"), [(1, 0.3), (4, 0.3), (5, 0.26), (65, 0.02)])
def test_the_radius_is_shared_out_over_depth(layers: int, radius: float) -> None:
    assert radius_of(TeleportConfig(), layers) == pytest.approx(radius)
    assert radius_of(TeleportConfig(radius=0.7), layers) == 0.7


def _net(**options: Any) -> MLPGraph:
    return MLPGraph(np, (6, 40, 40, 40, 3), samples=4, **options)


FD = {"projection": "threshold", "tangent": "fd", "max_loss_change": 1e9}


@pytest.mark.parametrize("explosion", ["mild", "wild"])
def test_a_move_that_goes_too_far_is_tried_once_more_shorter(explosion: str) -> None:
    radius, share = {"mild": (2.0, 0.9), "wild": (2.0, 0.6)}[explosion]
    free = teleport(_net(), TeleportConfig(radius=radius, max_gain=1e9, **FD))
    gain = free.grad_norm_after / free.grad_norm_before
    limit = gain**share
    graph = _net()
    before, inputs = numbers(graph.values), numbers(graph.inputs(graph.values))
    report = teleport(graph, TeleportConfig(radius=radius, max_gain=limit, **FD))
    assert report.accepted, report.reason
    # So much that a logarithm of the growth that is like the root of the length is allowed.
    expected = min(0.5, MARGIN * (np.log(limit) / np.log(gain)) ** 2)
    assert graph.kept == pytest.approx([expected, 1.0])
    assert report.radius == pytest.approx(radius * expected)
    assert report.grad_norm_after <= limit * report.grad_norm_before
    assert report.cost == pytest.approx(free.cost + 1)  # one gradient more
    moved = [layer for layer in report.layers if layer.moved > 0]
    assert len(moved) == 3
    for layer in moved:
        k = 2 * int(layer.name[5])
        old, new = (np.c_[w[k], w[k + 1]] for w in (before, graph.values))
        rows = with_ones(inputs[k // 2])
        length = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert layer.moved == pytest.approx(report.radius)
        assert length == pytest.approx(report.radius)
        change = np.linalg.norm(rows @ (new - old).T) / np.linalg.norm(inputs[k // 2] @ before[k].T)
        assert change <= layer.output_change_bound <= 1e-12


def test_refused_after_both_tries_nothing_has_changed(xp: Any) -> None:
    graph = MLPGraph(xp, (6, 40, 40, 40, 3), samples=4)
    start = numbers(graph.values)
    report = teleport(graph, TeleportConfig(radius=2.0, max_gain=1 + 1e-12, **FD))
    assert report.cause == Cause.GAIN
    assert report.radius == pytest.approx(2.0 * 0.05)
    assert graph.kept == pytest.approx([0.05, 0.0])
    assert unmoved(graph, start)
    assert all(layer.moved == 0 for layer in report.layers)
    assert report.grad_norm_after > report.grad_norm_before * (1 + 1e-12)


class Exploding(MLPGraph):
    """After a move its gradient is not finite, so long as more than a share is kept."""

    limit = 0.6

    def gradient(self, batch: str = "batch", shift: Any = None) -> Any:
        loss, gradients = super().gradient(batch, shift)
        if (self.kept[-1] if self.kept else 1.0) > self.limit:
            gradients = [g * np.inf for g in gradients]
        return loss, gradients


@pytest.mark.parametrize(("limit", "cause"), [(0.6, Cause.NONE), (0.1, Cause.GRADIENT)])
def test_a_gradient_that_explodes(limit: float, cause: Cause) -> None:
    graph = Exploding(np, (6, 40, 40, 3))
    graph.limit, start = limit, numbers(graph.values)
    with np.errstate(invalid="ignore"):
        report = teleport(graph, TeleportConfig(radius=0.2, **FD))
    assert report.cause == cause
    assert graph.kept == [0.5, 1.0 if cause == Cause.NONE else 0.0]
    assert unmoved(graph, start) == (cause != Cause.NONE)
    assert report.radius == pytest.approx(0.1)
    if cause:
        assert "gradient norm would be" in report.reason


def test_the_gain_is_not_bounded_where_the_optimizer_is_the_judge() -> None:
    config = TeleportConfig(objective="grad_norm", radius=0.5, max_gain=1.0001, **FD)
    graph = _net(rate=1e-9)
    report = teleport(graph, config)
    assert report.accepted, report.reason
    assert report.grad_norm_after > 1.0001 * report.grad_norm_before


@pytest.mark.parametrize("given", [None, 0.07])
def test_the_radius_that_is_left_open_is_the_callers(given: float | None) -> None:
    report = teleport(_net(), TeleportConfig(max_gain=1e9, **FD), radius=given)
    assert report.radius == (0.3 if given is None else given)  # four layers: 1.3 / 4 > 0.3
    fixed = teleport(_net(), TeleportConfig(radius=0.01, **FD), radius=0.07)
    assert fixed.radius == 0.01


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("samples", [5, 60], ids=["few samples", "many samples"])
@pytest.mark.parametrize("budget", [1e-3, 0.01, 0.1])
def test_every_layer_stays_within_its_budget(
    xp: Any, samples: int, budget: float, steps: int
) -> None:
    graph = MLPGraph(xp, (6, 20, 15, 3), samples=samples)
    before, lin = numbers(graph.values), graph.linearize()
    config = TeleportConfig(
        objective="grad_norm", budget=budget, radius=0.3, max_loss_change=1e9, steps=steps,
        max_gain=1e9,
    )  # fmt: skip
    report = teleport(graph, config)
    assert report.accepted
    moved = 0
    for layer in report.layers:
        k = 2 * int(layer.name[5])
        inputs, output = to_numpy(lin.sites[k // 2].inputs), float(lin.sites[k // 2].output_norm)
        w, b = (to_numpy(graph.values[i]) - before[i] for i in (k, k + 1))
        change = np.linalg.norm(inputs @ w.T + b) / output
        assert layer.output_change <= layer.output_change_bound * (1 + 1e-9)
        if not layer.moved:
            continue
        moved += 1
        assert layer.moved <= 0.3 * (1 + 1e-6)
        if samples == 5:
            assert change <= layer.output_change_bound <= 1e-13
        elif steps == 1:
            assert change <= budget * (1 + 1e-6)
            # Nothing is free: either the budget or the radius binds.
            assert change >= 0.99 * budget or layer.moved >= 0.99 * 0.3
            assert layer.output_change == pytest.approx(change, rel=1e-6)
        else:  # each step at its own inputs, which the steps before have changed a little
            assert layer.output_change_bound <= budget * (1 + 0.2)
    assert moved == 2


def test_an_exact_null_space_is_used_where_there_is_one() -> None:
    """With clearly fewer samples than inputs the budget projection is the exact one."""
    results = []
    for projection in ("budget", "threshold"):
        graph = MLPGraph(np, (6, 40, 40, 3), samples=5)
        loss = float(graph.loss_at(graph.values))
        config = TeleportConfig(projection=projection, radius=0.2)  # type: ignore[arg-type]
        assert teleport(graph, config).accepted
        assert float(graph.loss_at(graph.values)) == pytest.approx(loss, rel=1e-12)
        results.append(graph.values)
    assert all(map(np.array_equal, *results))


def test_why_a_layer_cannot_follow_its_direction() -> None:
    one = np.asarray(1.0)
    good = Found(np.asarray(3), one < 0, one, np.ones((2, 2)), one, one, one, one)
    block = Block("w", 0, matrix((), 2, 2), (0,))
    layer = Layer(block, "dense", 1, one < 0, one, one, False, True, 0.0)
    ends = {
        Hold.EMPTY: replace(good, empty=one > 0),
        Hold.STILL: replace(good, size=0 * one),
        Hold.BROKEN: replace(good, size=one * np.nan),
        Hold.SPANNED: replace(good, share=one * 1e-14),
    }
    assert not any(good.obstacles(layer).values())
    assert good.obstacles(replace(layer, hidden=one > 0))[Hold.HIDDEN]
    for hold, found in ends.items():
        assert [h for h, held in found.obstacles(layer).items() if held] == [hold]
    bound = replace(good, bound=one * np.inf)
    assert bound.obstacles(layer)[Hold.BROKEN], "what has no certificate does not move"


def test_steps_add_up_and_a_share_is_stored_once_more() -> None:
    a, b = (Moved(*(np.asarray(float(k * i)) for i in range(1, 7))) for k in (1, 10))
    both = a + b
    assert [float(x) for x in vars(both).values()] == [11, 22, 33, 44, 55, 60]
    assert float(a.certificate) == 2 + 4
    assert float(a.measured) == pytest.approx(np.hypot(3, 5))
    half = a.shortened(0.5)
    assert (float(half.length), float(half.bound), float(half.change)) == (0.5, 1.0, 1.5)
    assert float(half.certificate) == 1 + 0.5 * 4 + 6


# Name, gradients besides those of linearizations and verdicts, tangents, tests on the batch.
OBJECTIVES = [
    ("grad_norm", 0, 1, 1),
    ("decrease", 0, 1, 1),
    ("weight_norm", 0, 0, 1),
    ("look_ahead", 1, 1, 0),
    ("others", 1, 0, 0),
    ("sharpness", 1, 1, 1),
]


def _spaces(n: int, *sizes: tuple[int, int]) -> float:
    """Return what exact null spaces of layers (out, in) cost: QR and projection, in gradients."""
    work = sum(8.0 * n**2 * (inp + 1) for _, inp in sizes)
    return work / sum(6.0 * out * inp * n for out, inp in sizes)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("objective", "more", "tangents", "tests"), OBJECTIVES)
def test_what_is_charged_is_what_was_done(
    objective: str, more: int, tangents: int, tests: int, steps: int, reuse: bool
) -> None:
    """A forward pass is a third of a gradient, and so is the kernel of every layer's product."""
    graph = MLPGraph(
        np, (6, 30, 20, 3), samples=2, rate=1e-6, guard_samples=2, other_samples=2, reuse=reuse
    )
    config = TeleportConfig(objective=objective, steps=steps, radius=1e-3, **FD)
    report = teleport(graph, config)
    assert report.cause in (Cause.NONE, Cause.GUARD)
    looks = 2 * (1 + tests)  # the guard, and the optimizer's step on the batch, before and after
    assert graph.counts == {
        "linearize": steps,
        "gradient": 1 + steps * more,
        "replay": steps * tangents,
        "loss": looks,
        "release": 1,
    }
    linearized = 1 + (steps - 1) * (2 / 3 if reuse else 1)
    expected = linearized + 1 + steps * more + looks * FORWARD
    expected += steps * tangents * (FORWARD + KERNEL)
    # Null spaces are made once: exact steps leave the inputs as they are.
    expected += _spaces(2, (30, 6), (20, 30), (3, 20))
    assert report.cost == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("guard", [0, 5])
@pytest.mark.parametrize("tries", [1, 2])
@pytest.mark.parametrize("rate", [None, 1e-9])
def test_refusals_are_charged_too(guard: int, tries: int, rate: float | None) -> None:
    graph = MLPGraph(np, (6, 30, 20, 3), samples=2, guard_samples=guard, rate=rate)
    # A change of nothing is refused for its rounding, at any length.
    loss = {"max_loss_change": 0.0} if tries == 2 else {"max_loss_change": 1e9}
    config = TeleportConfig(objective="grad_norm", radius=0.5, max_gain=1e9, **{**FD, **loss})
    report = teleport(graph, config)
    found = len(graph.kept)
    looks = bool(guard) + (rate is not None)
    expected = 1 + FORWARD + KERNEL + _spaces(2, (30, 6), (20, 30), (3, 20)) + found
    assert report.cost == pytest.approx(expected + (1 + found) * looks * FORWARD, rel=1e-12)
    assert graph.counts["gradient"] == found
    assert graph.counts["loss"] == (1 + found) * looks
    assert found == tries or report.accepted or report.cause == Cause.GUARD


def test_forward_mode_costs_two_passes() -> None:
    costs = {}
    for way in ("jvp", "fd"):
        engine = Engine(way)
        for _ in range(2):  # the first time forward mode is compared with a difference
            graph = ForwardMLPGraph(np, (6, 30, 20, 3), samples=2)
            costs[way] = teleport(
                graph,
                TeleportConfig(**{**FD, "tangent": way, "objective": "grad_norm"}),
                engine=engine,
            )
    assert costs["jvp"].cost - costs["fd"].cost == pytest.approx(FORWARD)
    assert graph.counts["replay"] == 1


def test_a_teleport_that_moves_nothing_is_not_judged() -> None:
    graph = MLPGraph(np, (6, 30, 20, 3), samples=60, guard_samples=4)
    report = teleport(graph, TeleportConfig(projection="threshold", tangent="fd"))
    assert report.cause == Cause.STILL
    work = sum(
        4.0 * 60 * (i + 1) ** 2 + 18.0 * (i + 1) ** 3 + 4.0 * o * i * (i + 1) for o, i in SHAPES
    )
    work /= sum(6.0 * o * i * 60 for o, i in SHAPES)
    assert report.cost == pytest.approx(1 + 2 * FORWARD + KERNEL + work, rel=1e-12)


SHAPES = [(30, 6), (20, 30), (3, 20)]


def test_the_projected_part_of_a_weight_is_all_that_moves() -> None:
    graph = _net()
    before, inputs = numbers(graph.values), numbers(graph.inputs(graph.values))
    assert teleport(graph, TeleportConfig(radius=0.1, **FD)).accepted
    for k in (1, 2, 3):
        change = np.c_[graph.values[2 * k], graph.values[2 * k + 1]]
        change = change - np.c_[before[2 * k], before[2 * k + 1]]
        left = change - change @ null_projector(with_ones(inputs[k]))
        assert np.linalg.norm(left) <= 1e-13 * np.linalg.norm(before[2 * k])
