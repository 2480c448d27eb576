"""The policy in a loop on arrays: when, with which samples, and resuming."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_adapter.graphs import problems
from array_adapter.layer_reference import place

from nullport import TeleportConfig
from nullport_arrays import SGD, Teleporter, apply, from_network
from nullport_arrays.layers import flatten, value_and_grad

PROBLEM = problems()["mlp"]
RULE = SGD(0.05, momentum=0.9)


class Loop:
    """A training loop with a teleporter, as a user would write it."""

    def __init__(self, **options: Any) -> None:
        self.params = PROBLEM.params()
        self.state = RULE.init(self.params)
        self.given: list[tuple[Any, Any, Any]] = []
        self.teleporter = Teleporter(self.make, **options)
        self.count = 0

    def make(self, batch: Any, guard: Any, others: Any) -> Any:
        self.given.append((batch, guard, others))
        return from_network(
            PROBLEM.network,
            PROBLEM.loss,
            self.params,
            batch,
            guard=guard,
            others=others,
            optimizer=RULE,
            state=self.state,
        )

    def batch(self) -> Any:
        rng = np.random.default_rng(self.count)
        return rng.standard_normal((6, 3, 4)), rng.standard_normal((6, 3))

    def step(self) -> None:
        batch = self.batch()
        if self.teleporter.maybe_step(batch):
            self.params = self.teleporter.graph.params  # type: ignore[union-attr]
        _, gradient = value_and_grad(PROBLEM.network, PROBLEM.loss, self.params, *batch)
        steps, self.state = RULE.update(gradient, self.state, self.params)
        self.params = apply(self.params, steps)
        self.count += 1


def test_recent_batches_are_the_other_samples() -> None:
    loop = Loop(every=5)
    for _ in range(12):
        loop.step()
    assert len(loop.given) == 2
    assert loop.teleporter.last is loop.teleporter.history[-1]
    for (batch, guard, others), at in zip(loop.given, (5, 10), strict=True):
        for found, step in ((batch, at), (guard, at - 2), (others, at - 1)):
            assert np.array_equal(found[0], np.random.default_rng(step).standard_normal((6, 3, 4)))


def test_auto_is_early_and_keeps_to_its_share() -> None:
    loop = Loop(horizon=1000)
    for _ in range(60):
        loop.step()
    spent = sum(report.cost for report in loop.teleporter.history)
    assert loop.teleporter.history
    assert spent <= 0.03 * 1000 + max(report.cost for report in loop.teleporter.history)


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9])
def test_resumes_bit_for_bit(stop: int) -> None:
    through, first = Loop(every=5), Loop(every=5)
    for _ in range(14):
        through.step()
    for _ in range(stop):
        first.step()
    second = Loop(every=5)
    second.params, second.state, second.count = first.params, first.state, first.count
    second.teleporter.load_state_dict(first.teleporter.state_dict())
    for _ in range(14 - stop):
        second.step()
    for a, b in zip(flatten(through.params).values(), flatten(second.params).values(), strict=True):
        assert np.array_equal(a, b)


def test_given_samples_are_used() -> None:
    loop = Loop(every=1)
    batch, other = loop.batch(), (PROBLEM.x, PROBLEM.y)
    loop.teleporter.maybe_step(batch, other, other)
    loop.teleporter.maybe_step(batch, other, other)
    assert loop.given[0] == (batch, other, other)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="invalid every: 0; allowed: 'auto' or an integer"):
        Loop(every=0)
    with pytest.raises(ValueError, match=r"state has keys \['x'\], expected"):
        Loop().teleporter.load_state_dict({"x": 1})


def test_a_config_is_used() -> None:
    loop = Loop(every=3, config=TeleportConfig(exclude=("*",)))
    with place("numpy"):
        for _ in range(4):
            loop.step()
    assert loop.teleporter.last is not None
    assert not any(layer.moved for layer in loop.teleporter.last.layers)
