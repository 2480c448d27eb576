"""When to teleport, how far, and how much of the compute it may use."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from nullport import TeleportReport
from nullport._policy import FIRST, GROW_ACCEPTED, GROW_REFUSED, Policy, Rule
from nullport._report import Cause


def _report(*, accepted: bool, cost: float = 5.0) -> TeleportReport:
    return TeleportReport(1.0, 1.0, 1.0, 2.0, 0.1, 0 if accepted else Cause.LOSS, cost=cost)


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


@pytest.mark.parametrize("every", ["auto", 3])
def test_state_round_trip(every: int | str) -> None:
    one = Policy(Rule.parse(every))
    _due(one, 37, accepted=True)
    state = json.loads(json.dumps(one.state_dict()))
    two = Policy(Rule.parse("auto"))
    two.load_state_dict(state)
    assert two == one
    assert _due(two, 200, accepted=False) == _due(one, 200, accepted=False)


@pytest.mark.parametrize("change", [{"step": None}, {"extra": 1}], ids=["missing", "unknown"])
def test_state_of_something_else(change: dict[str, Any]) -> None:
    state = Policy().state_dict() | change
    state = {key: value for key, value in state.items() if value is not None or key == "every"}
    with pytest.raises(ValueError, match=r"state has keys .* expected"):
        Policy().load_state_dict(state)
