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
from nullport.network import namespace


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
    second = Descent()
    second.load_state_dict(state)
    second.graph = first.graph
    second.train(range(7, 12))
    assert second.state_dict() == whole.state_dict()
    assert all(map(np.array_equal, second.graph.values, whole.graph.values))


def test_what_was_given_wins_over_a_state() -> None:
    """A resumed run may be extended, and teleport more or less often."""
    first = Descent(every=3, horizon=100)
    first.train(range(7))
    state = first.state_dict()
    second = Descent(every=5, horizon=400)
    second.load_state_dict(state)
    policy = second.state_dict()["policy"]
    assert (policy["every"], policy["horizon"], policy["interval"]) == (5, 400, 5.0)
    assert policy["due"] == min(state["policy"]["due"], state["policy"]["step"] + 5)
    third = Descent(every="auto")
    third.load_state_dict(state)
    assert third.state_dict()["policy"] == {**state["policy"], "every": None}


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


@pytest.mark.parametrize("horizon", [0, -1, 1.0, True, "10"])
def test_bad_horizon(horizon: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid horizon: .*; allowed: an integer of at least 1"):
        Rule.parse("auto", horizon)
    with pytest.raises(ValueError, match="invalid horizon"):
        Descent(horizon=horizon)


def test_settings_of_a_teleporter_are_checked_when_it_is_made() -> None:
    class Plain(Teleporter):
        def _graph(self, batch: Any, guard: Any, others: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"invalid config: 'fast'; allowed: a TeleportConfig"):
        Plain(config="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid every"):
        Plain(every=0)
    with pytest.raises(TypeError):
        Teleporter()  # type: ignore[abstract]
    assert Plain().last is None
    assert not Plain().due
    assert Plain().hand_over() is None
    assert Plain().summary() == "0 teleports, 0 accepted; phase: unknown"


def test_a_rule_in_every_namespace(xp: Any) -> None:
    """The same states on 0-d arrays, so that it can be traced."""
    rule, states = Rule.parse("auto", 300), []
    for given in (xp, np):
        state, seen = rule.start(given.asarray(0.0, dtype=given.float32)), []
        for step in range(120):
            if bool(rule.due(state)):
                state = rule.update(state, given.asarray(step % 3 > 0), 1.5)
                state = rule.refund(state, 1.0, refused=not step % 3)
            state = rule.tick(state)
            seen += [float(x) for x in state]
        assert {namespace(x) for x in state} == {namespace(given.asarray(0.0))}
        assert all(x.dtype == given.float32 and x.shape == () for x in state)
        states.append(seen)
    assert states[0] == pytest.approx(states[1])


def test_a_charge_is_taken_back() -> None:
    rule, state = Rule(), Rule().start(np.float64(0.0))
    for refused in (False, True):
        charged = rule.update(state, np.bool_(not refused), 5.0)
        assert (charged.spent, charged.wasted, charged.last) == (5.0, 5.0 * refused, 5.0)
        back = rule.refund(charged, 1.0, refused=refused)
        assert (back.spent, back.wasted, back.last) == (4.0, 4.0 * refused, 4.0)
        assert back._replace(spent=5.0, wasted=5.0 * refused, last=5.0) == charged


def test_given_samples_come_before_kept_ones() -> None:
    teleporter = Descent(every=4)
    teleporter.train(range(4))
    teleporter.maybe_step(4, guard="g")
    teleporter.step(5, others="o")
    teleporter.step(6, guard="g", others="o")
    assert teleporter.asked == [(4, "g", 3), (5, None, "o"), (6, "g", "o")]
    early = Descent(every=1)
    early.maybe_step(0)
    assert early.maybe_step(1) is None, "no two batches are known yet"
    assert early.maybe_step(2, guard="g") is not None


def test_without_an_optimizer_no_batch_is_kept() -> None:
    teleporter = Descent(every=2, judged=False)
    teleporter.train(range(5))
    assert teleporter.asked == [(2, None, None), (4, None, None)]
    assert teleporter.state_dict()["recent"] == []


def test_a_gradient_is_handed_over_once_and_only_at_its_own_step() -> None:
    teleporter = Descent(every=3)
    for batch in range(3):
        assert teleporter.maybe_step(batch) is None
        assert not teleporter.gradient_ready
    report = teleporter.maybe_step(3)
    assert report is teleporter.last is teleporter.history[-1]
    assert teleporter.gradient_ready
    spent = teleporter.state_dict()["policy"]["spent"]
    assert spent == pytest.approx(float(report.cost))
    loss, gradients = teleporter.hand_over()
    expected = teleporter.graph.differentiate(teleporter.graph.values)
    assert loss == expected[0]
    assert all(map(np.array_equal, gradients, expected[1]))
    assert teleporter.hand_over() is None
    policy = teleporter.state_dict()["policy"]
    assert policy["spent"] == pytest.approx(spent - 1)
    assert policy["last"] == pytest.approx(spent - 1)
    assert policy["wasted"] == (0.0 if report.accepted else pytest.approx(spent - 1))
    for batch in range(4, 7):
        teleporter.maybe_step(batch)
    assert teleporter.gradient_ready
    teleporter.maybe_step(7)
    assert not teleporter.gradient_ready, "it belongs to the step before"
    unlike = Descent(every=3)
    unlike.graph.repeatable = False
    for batch in range(4):
        unlike.maybe_step(batch)
    assert unlike.last is not None
    assert not unlike.gradient_ready


def test_what_is_kept_goes_through_the_adapter() -> None:
    class Careful(Descent):
        def _keep(self, batch: Any, *, judges: bool) -> Any:
            assert judges
            return ("kept", batch)

        def _save(self, kept: Any) -> Any:
            return kept[1] if kept[1] != 1 else None  # this one has no data

        def _load(self, data: Any, batch: Any) -> Any:
            return ("loaded", data, batch)

    one = Careful(every=2)
    one.train(range(2))
    state = one.state_dict()
    assert state["recent"] == [0]
    two = Careful(every=2)
    two.load_state_dict(state)
    assert two.state_dict() == state, "also before it has seen a batch"
    assert two.maybe_step(2) is None, "with one batch of two there is nobody to judge"
    assert two._recent == [("loaded", 0, 2), ("kept", 2)]


def test_a_state_is_plain_and_resumes_bit_for_bit_at_every_step() -> None:
    whole = Descent(every="auto")
    whole.train(range(14))
    for cut in range(1, 14):
        first, second = Descent(every="auto"), Descent()
        first.train(range(cut))
        state = json.loads(json.dumps(first.state_dict()))
        second.load_state_dict(state)
        assert second.state_dict() == state
        second.graph = first.graph
        second.train(range(cut, 14))
        assert second.state_dict() == whole.state_dict()
        assert all(map(np.array_equal, second.graph.values, whole.graph.values))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"policy": None, "recent": []},
        {"policy": {}, "recent": []},
        {"policy": 1, "recent": [], "more": 2},
    ],
    ids=str,
)
def test_a_state_of_something_else(bad: Any) -> None:
    teleporter = Descent(every=3)
    teleporter.train(range(2))
    before = teleporter.state_dict()
    with pytest.raises((TypeError, ValueError)) as error:
        teleporter.load_state_dict(bad)
    assert "\n" not in str(error.value)
    assert teleporter.state_dict() == before


@pytest.mark.parametrize("key", ["every", "horizon", "step", "due", "interval", "spent", "last"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1", [1.0]])
def test_every_number_of_a_state_is_checked(key: str, value: Any) -> None:
    teleporter = Descent(every=3)
    teleporter.train(range(2))
    before = teleporter.state_dict()
    bad = {**before, "policy": {**before["policy"], key: value}}
    with pytest.raises((TypeError, ValueError), match=f"invalid {key}: "):
        teleporter.load_state_dict(bad)
    assert teleporter.state_dict() == before
