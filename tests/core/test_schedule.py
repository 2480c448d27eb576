"""When to teleport, and how much of the compute it may use; the object in the training loop."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from helpers.mlp_graph import MLPGraph

from nullport import Rule, TeleportConfig, Teleporter
from nullport._schedule import FIRST, GROW_ACCEPTED, GROW_REFUSED


class Policy:
    """A rule with its state."""

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule or Rule()
        self.state = self.rule.start(np.float64(0.0))

    @property
    def due(self) -> bool:
        return bool(self.rule.due(self.state))

    def near(self, steps: int) -> bool:
        return bool(self.rule.near(self.state, steps))

    def update(self, report: tuple[bool, float]) -> None:
        self.state = self.rule.update(self.state, np.bool_(report[0]), report[1])

    def tick(self) -> None:
        self.state = self.rule.tick(self.state)


def _report(*, accepted: bool, cost: float = 5.0) -> tuple[bool, float]:
    return accepted, cost


def _due(policy: Policy, steps: int, *, accepted: bool, cost: float = 5.0) -> list[int]:
    """Return the steps before which a teleport was due."""
    found = []
    for step in range(steps):
        if policy.due:
            found.append(step)
            policy.update(_report(accepted=accepted, cost=cost))
        policy.tick()
    return found


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_fixed_interval(every: int, accepted: bool) -> None:
    policy = Policy(Rule.parse(every))
    assert _due(policy, 40, accepted=accepted) == list(range(every, 40, every))
    assert policy.state.step == 40


@pytest.mark.parametrize(
    ("accepted", "growth"), [(True, GROW_ACCEPTED), (False, GROW_REFUSED)], ids=["yes", "no"]
)
def test_auto_is_early_and_ever_rarer(accepted: bool, growth: float) -> None:
    due = _due(Policy(Rule.parse("auto")), 5000, accepted=accepted, cost=0.1)
    assert due[0] == FIRST
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert gaps == [int(FIRST * growth ** (i + 1)) for i in range(len(gaps))]


@pytest.mark.parametrize("cost", [1.0, 5.0, 12.0])
@pytest.mark.parametrize(("accepted", "share"), [(True, 0.03), (False, 0.005)], ids=["yes", "no"])
@pytest.mark.parametrize("steps", [1000, 10_000])
def test_the_share_of_compute(cost: float, accepted: bool, share: float, steps: int) -> None:
    due = _due(Policy(Rule.parse("auto")), steps, accepted=accepted, cost=cost)
    assert due, "never tried"
    assert len(due) * cost <= max(share * steps, cost)


def test_batches_are_kept_just_before_a_teleport() -> None:
    policy = Policy()
    near = []
    for step in range(12):
        if policy.due:
            policy.update(_report(accepted=False, cost=1.0))
        if policy.near(2):
            near.append(step)
        policy.tick()
    assert near == [0, 1, 4, 5]  # 2 and 6 are due, then 14


@pytest.mark.parametrize("every", [0, -1, 1.0, True, "often", None, "10"])
def test_bad_every(every: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid every: .*; allowed: 'auto' or an integer"):
        Policy(Rule.parse(every))


class Descent(Teleporter):
    """Gradient descent on a NumPy network; batches are seeds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(config=TeleportConfig(tangent="fd"), **options)
        self.graph = MLPGraph(
            np, (6, 30, 30, 3), rate=0.05, guard_samples=4, other_samples=4, seed=1
        )
        self.graph.repeatable = True
        self.asked: list[tuple[Any, Any, Any]] = []

    def _graph(self, batch: Any, guard: Any, others: Any) -> MLPGraph:
        self.asked.append((batch, guard, others))
        return self.graph

    def train(self, batches: range) -> None:
        for batch in batches:
            self.maybe_step(batch)
            handed = self.hand_over()
            found = self.graph.gradient()[1] if handed is None else handed[1]
            pairs = zip(self.graph.values, found, strict=True)
            self.graph._weights = [w - 0.05 * g for w, g in pairs]
            self.graph._start = self.graph.weights()


def test_recent_batches_judge_and_gradients_are_handed_over() -> None:
    teleporter = Descent(every=4)
    teleporter.train(range(6))
    assert teleporter.asked == [(4, 2, 3)]
    assert len(teleporter.history) == 1
    report = teleporter.history[0]
    spent = teleporter.state_dict()["policy"]["spent"]
    assert spent == pytest.approx(float(report.cost) - 1)  # the step's own gradient
    assert not teleporter.gradient_ready


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    whole, first = Descent(every=3), Descent(every=3)
    whole.train(range(12))
    first.train(range(7))
    state = json.loads(json.dumps(first.state_dict()))
    second = Descent(every="auto")
    second.load_state_dict(state)
    second.graph = first.graph
    second.train(range(7, 12))
    assert second.state_dict() == whole.state_dict()
    assert all(map(np.array_equal, second.graph.values, whole.graph.values))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"every": -5}, ValueError, "every"),
        ({"horizon": 0}, ValueError, "horizon"),
        ({"step": float("nan")}, ValueError, "step"),
        ({"spent": -1.0}, ValueError, "spent"),
        ({"due": "soon"}, ValueError, "due"),
    ],
)
def test_bad_states_are_refused_whole(change: Any, error: type[Exception], words: str) -> None:
    teleporter = Descent(every=3)
    teleporter.train(range(2))
    before = teleporter.state_dict()
    bad = {**before, "policy": {**before["policy"], "step": 77.0, **change}}
    with pytest.raises(error, match=words):
        teleporter.load_state_dict(bad)
    for other in ({"policy": before["policy"]}, {**before, "recent": 3}, {**before, "policy": [1]}):
        with pytest.raises((TypeError, ValueError), match=r"keys|recent|policy"):
            teleporter.load_state_dict(other)
    assert teleporter.state_dict() == before
