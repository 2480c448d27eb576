"""Whether a move may stay: every cause at its boundary, and what it costs to find out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.mlp_graph import MLPGraph, numbers, unmoved

from nullport import TeleportConfig, teleport
from nullport._report import Cause
from nullport._verdict import ARMIJO, MARGIN, TOO_FAR, Look, first, look, shorter, verdict

NAN = math.nan


def _look(loss: float = 1.0, norm: float = 1.0, **more: float) -> Look:
    return Look(*map(np.float64, (loss, norm)), **{k: np.float64(v) for k, v in more.items()})


# The loss may rise by 2**-4 of its value, the gradient norm fourfold: exact in floating point.
CONFIG = TeleportConfig(max_loss_change=0.0625, max_gain=4.0)


def _more(x: float) -> float:
    return math.nextafter(x, math.inf)


def _less(x: float) -> float:
    return math.nextafter(x, -math.inf)


@pytest.mark.parametrize(
    ("after", "optimizer", "cause"),
    [
        (_look(), False, Cause.NONE),
        (_look(-5.0), False, Cause.NONE),
        (_look(1.0625), False, Cause.NONE),
        (_look(_more(1.0625)), False, Cause.LOSS),
        (_look(1.0625), True, Cause.NONE),
        (_look(_more(1.0625)), True, Cause.LOSS),
        (_look(np.inf), True, Cause.LOSS),
        (_look(NAN), False, Cause.LOSS),
        (_look(1.0, np.inf), False, Cause.GRADIENT),
        (_look(1.0, NAN), True, Cause.GRADIENT),
        (_look(1.0, 4.0), False, Cause.NONE),
        (_look(1.0, _more(4.0)), False, Cause.GAIN),
        (_look(1.0, 1e9), True, Cause.NONE),
        (_look(1.0, 2.0, stepped=0.5, promised=1.0), True, Cause.NONE),
        (_look(1.0, 2.0, stepped=_more(0.5), promised=1.0), True, Cause.ARMIJO),
        (_look(1.0, 2.0, stepped=0.0, promised=2.0), True, Cause.NONE),
        (_look(1.0, 2.0, stepped=NAN, promised=1.0), True, Cause.ARMIJO),
        (_look(1.0, 2.0, stepped=0.5, promised=NAN), True, Cause.ARMIJO),
        (_look(1.0, 2.0, guard=_less(1.0)), True, Cause.NONE),
        (_look(1.0, 2.0, guard=1.0), True, Cause.GUARD),
        (_look(1.0, 2.0, guard=NAN), True, Cause.GUARD),
        (_look(1.0, 2.0, guard=1.0625), False, Cause.NONE),
        (_look(1.0, 2.0, guard=_more(1.0625)), False, Cause.GUARD),
        (_look(1.0, 2.0, guard=NAN), False, Cause.GUARD),
    ],
)
def test_every_cause_at_its_boundary(after: Look, optimizer: bool, cause: Cause) -> None:
    before = _look(1.0, 1.0, guard=1.0)
    code = verdict(before, after, CONFIG, optimizer=optimizer)
    assert int(code) == cause
    assert code.dtype == np.int32
    assert code.shape == ()


def test_a_guard_that_is_not_there_refuses_nothing() -> None:
    assert int(verdict(_look(), _look(guard=9.0), CONFIG, optimizer=True)) == 0
    assert int(verdict(_look(guard=0.0), _look(), CONFIG, optimizer=True)) == 0


def test_the_first_of_several_causes_is_named(xp: Any) -> None:
    worst = _look(9.0, np.inf, stepped=NAN, promised=1.0, guard=9.0)
    assert int(verdict(_look(guard=1.0), worst, CONFIG, optimizer=False)) == Cause.LOSS
    no, yes = xp.asarray(False), xp.asarray(True)
    code = first({Cause.LOSS: no, Cause.GAIN: yes, Cause.GUARD: yes})
    assert int(code) == Cause.GAIN
    assert code.dtype == xp.int32
    assert type(code) is type(no)
    assert int(first({Cause.LOSS: no})) == 0


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


@pytest.mark.parametrize("cause", list(Cause))
def test_what_is_tried_again(cause: Cause, xp: Any) -> None:
    ends = [Look(xp.asarray(1.0), xp.asarray(n)) for n in (1.0, 16.0)]
    share = shorter(*ends, xp.asarray(int(cause), dtype=xp.int32), TeleportConfig())
    assert type(share) is type(xp.asarray(1.0))
    assert (float(share) > 0) == (cause in TOO_FAR)
    # The logarithm rises like the root of the length, at least: 4 = 16 ** (1 / 4) ** (1 / 2).
    expected = {Cause.GAIN: MARGIN / 4}.get(cause, 0.5)
    assert float(share) == pytest.approx(expected if cause in TOO_FAR else 0.0)


def test_a_gradient_that_is_not_finite_is_tried_at_half() -> None:
    for norm in (np.inf, NAN):
        share = shorter(_look(), _look(1.0, norm), np.int32(Cause.GRADIENT), TeleportConfig())
        assert float(share) == 0.5
    share = shorter(_look(1.0, 0.0), _look(1.0, 1.0), np.int32(Cause.GAIN), TeleportConfig())
    assert 0.05 <= float(share) <= 0.5


GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "guard": {"guard_samples": 5},
    "optimizer": {"rate": 0.1, "decay": 0.2},
    "both": {"guard_samples": 5, "rate": 0.1, "decay": 0.2},
}


@pytest.mark.parametrize("armijo", [False, True])
@pytest.mark.parametrize("name", GIVEN)
def test_a_look_at_a_point(xp: Any, name: str, armijo: bool) -> None:
    graph = MLPGraph(xp, (4, 6, 2), **GIVEN[name])
    loss, gradients = graph.gradient()
    found = look(graph, loss, gradients, armijo=armijo)
    with_step, with_guard = "rate" in GIVEN[name], "guard_samples" in GIVEN[name]
    u = graph.optimizer_step(gradients) if with_step else None
    moved = graph.values if u is None else [w - a for w, a in zip(graph.values, u, strict=True)]
    squares = sum(float(xp.sum(g**2)) for g in gradients)
    assert float(found.grad_norm) == pytest.approx(squares**0.5)
    assert (found.guard is not None) == with_guard
    assert (found.stepped is not None) == (found.promised is not None) == (with_step and armijo)
    if with_guard:
        assert float(found.guard) == pytest.approx(float(graph.loss_at(moved, "guard")))
    if found.stepped is not None:
        slope = sum(float(xp.sum(a * b)) for a, b in zip(gradients, u, strict=True))
        assert float(found.stepped) == pytest.approx(float(graph.loss_at(moved)))
        assert float(found.promised) == pytest.approx(slope)
        assert bool(found.overshoots()) == (float(loss - found.stepped) < ARMIJO * slope)
    else:
        assert not bool(found.overshoots())
    assert graph.counts["loss"] == with_guard + (with_step and armijo)
    assert found.cost == pytest.approx(graph.counts["loss"] / 3)


def test_a_point_that_is_not_worth_a_teleport_is_left_at_once() -> None:
    graph = MLPGraph(np, (6, 20, 15, 3), rate=1e3, guard_samples=5)
    before = numbers(graph.values)
    report = teleport(graph, TeleportConfig(objective="grad_norm"))
    assert report.cause == Cause.SCREEN
    assert report.cost == pytest.approx(4 / 3)
    assert graph.counts == {"linearize": 1, "replay": 0, "gradient": 0, "loss": 1, "release": 0}
    assert report.guard_before is None
    assert report.layers == []
    assert report.loss_after == report.loss_before
    assert unmoved(graph, before)
    assert graph.kept == [0.0]


def test_where_nothing_can_move_that_is_the_reason() -> None:
    graph = MLPGraph(np, (6, 20, 15, 3), samples=60)
    before = numbers(graph.values)
    report = teleport(graph, TeleportConfig(projection="threshold"))
    assert report.cause == Cause.STILL
    assert graph.counts["gradient"] == 0
    assert graph.counts["release"] == 0
    assert unmoved(graph, before)


@pytest.mark.parametrize(
    ("given", "settings", "cause"),
    [
        ({}, {"max_loss_change": 0.0}, Cause.LOSS),
        ({}, {"max_gain": 1.0000001, "projection": "threshold"}, Cause.GAIN),
        ({"rate": 0.3}, {"objective": "grad_norm"}, Cause.ARMIJO),
        ({"guard_samples": 9}, {"max_loss_change": 1e-9, "projection": "threshold"}, Cause.GUARD),
        ({"guard_samples": 9, "rate": 1e-3}, {"projection": "threshold"}, Cause.GUARD),
    ],
    ids=lambda x: x.name if isinstance(x, Cause) else "",
)
def test_what_is_refused_is_undone_bit_for_bit(
    xp: Any, given: dict[str, Any], settings: dict[str, Any], cause: Cause
) -> None:
    """On seeds until the cause is found; refused after both tries where there are two."""
    config = TeleportConfig(**{"radius": 0.8, "tangent": "fd", "max_gain": 1e9, **settings})
    for seed in range(40):
        samples = 4 if config.projection == "threshold" else 30
        graph = MLPGraph(xp, (6, 20, 15, 3), samples=samples, seed=seed, **given)
        before = numbers(graph.values)
        report = teleport(graph, config)
        if report.cause == cause:
            break
    assert report.cause == cause
    assert unmoved(graph, before)
    assert graph.kept[-1] == 0.0
    assert len(graph.kept) == 1 + (cause in TOO_FAR)
    assert report.reason
    assert all(layer.moved == layer.output_change == 0 for layer in report.layers)
    assert report.loss_before == pytest.approx(float(graph.loss_at(graph.values)), rel=1e-14)
    # The numbers after are those of the move that was refused.
    assert report.grad_norm_after != report.grad_norm_before


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    graph = MLPGraph(np, (6, 20, 15, 3))
    x, y = graph.data["batch"]
    graph.data["batch"] = x, y * np.nan
    with pytest.raises(ValueError, match="returned loss nan; a teleport needs a finite loss"):
        teleport(graph)
    assert graph.kept == [0.0]
