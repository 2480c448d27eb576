"""When to teleport and how far: nothing to tune.

- *When*: early, from ``FIRST`` training steps on, then at intervals that grow after an accepted
  teleport and grow faster after a refused one.
- *How far*: by ``RADIUS``, always; there is no inner search. A network that can use a teleport
  takes a long one, and where that is refused a shorter one does harm that the judge of a single
  step does not see (``docs/benchmarks/policy.md``).
- *How much*: teleports may use at most ``SHARE`` of the compute, refused ones at most
  ``SHARE_REFUSED``, both counted against at least ``horizon`` steps, the expected length of the
  run, so that early teleports are possible at all. One that would exceed its share is not made.

A :class:`Rule` maps states to states, on 0-d arrays of any namespace, so that it can be traced.
:class:`Policy` is a rule with its present state, for a loop in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nullport._arrays import Array, namespace
from nullport._report import TeleportReport

FIRST = 2
GROW_ACCEPTED, GROW_REFUSED = 1.5, 2.0
SHARE, SHARE_REFUSED, HORIZON = 0.03, 0.005, 1000
RADIUS = 0.3


class State(NamedTuple):
    """What a policy remembers: 0-d arrays of one floating dtype.

    Attributes:
        step: Training steps so far.
        due: Step before which the next teleport is due.
        interval: Steps between teleports now.
        spent: Compute used by teleports, in gradients.
        wasted: Part of it used by refused ones.
        last: Compute used by the last teleport.
    """

    step: Array
    due: Array
    interval: Array
    spent: Array
    wasted: Array
    last: Array


@dataclass(frozen=True)
class Rule:
    """How a state goes on.

    Attributes:
        every: Fixed number of steps between teleports (then no share is kept to), or None.
        horizon: Training steps the run is expected to take.
    """

    every: int | None = None
    horizon: int = HORIZON

    @staticmethod
    def parse(every: int | str, horizon: int = HORIZON) -> Rule:
        """Make a rule from the arguments of an adapter.

        Raises:
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer, or ``horizon``
                is no positive integer.

        >>> Rule.parse(50)
        Rule(every=50, horizon=1000)
        """
        if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
            msg = f"invalid horizon: {horizon!r}; allowed: an integer of at least 1"
            raise ValueError(msg)
        if every == "auto":
            return Rule(horizon=horizon)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            msg = f"invalid every: {every!r}; allowed: 'auto' or an integer of at least 1"
            raise ValueError(msg)
        return Rule(every, horizon)

    def start(self, zero: Array) -> State:
        """Return the state before the first step, in the namespace and dtype of a 0-d ``zero``."""
        first = zero + (FIRST if self.every is None else self.every)
        return State(zero, first, first, zero, zero, zero)

    def due(self, state: State) -> Array:
        """Whether a teleport is due before the present step, 0-d bool."""
        due = state.step >= state.due
        if self.every is not None:
            return due
        xp = namespace(state.step)
        length = xp.maximum(state.step, xp.full_like(state.step, float(self.horizon)))
        within = state.spent + state.last <= SHARE * length
        hopeful = (state.wasted == 0) | (state.wasted + state.last <= SHARE_REFUSED * length)
        return due & within & hopeful

    def near(self, state: State, steps: int) -> Array:
        """Whether a teleport is due within so many steps, 0-d bool: batches are worth keeping."""
        return state.step + steps >= state.due

    def tick(self, state: State) -> State:
        """Count a training step."""
        return state._replace(step=state.step + 1)

    def update(self, state: State, accepted: Array, cost: float | Array) -> State:
        """Learn from a teleport before the present step.

        Args:
            state: The state before.
            accepted: Whether the teleport was accepted, 0-d bool.
            cost: Compute it used, in gradients.
        """
        xp = namespace(state.step)

        def either(yes: float | Array, no: float | Array) -> Array:
            return xp.where(accepted, yes + 0 * state.step, no + 0 * state.step)

        interval = state.interval
        if self.every is None:
            interval = interval * either(GROW_ACCEPTED, GROW_REFUSED)
        return state._replace(
            due=state.step + xp.floor(interval),
            interval=interval,
            spent=state.spent + cost,
            wasted=state.wasted + either(0.0, cost),
            last=either(cost, cost),
        )


@dataclass
class Policy:
    """A rule at work in a training loop.

    Attributes:
        rule: The rule.
        state: Its present state, as NumPy numbers.
    """

    rule: Rule = field(default_factory=Rule)
    state: State = field(init=False)
    _refused: bool = field(default=False, init=False, compare=False)

    def __post_init__(self) -> None:
        """Start."""
        self.state = self.rule.start(np.float64(0.0))

    @property
    def due(self) -> bool:
        """Whether a teleport is due before the present step."""
        return bool(self.rule.due(self.state))

    def near(self, steps: int) -> bool:
        """Whether a teleport is due within the next ``steps`` steps."""
        return bool(self.rule.near(self.state, steps))

    def tick(self) -> None:
        """Count a training step."""
        self.state = self.rule.tick(self.state)

    def update(self, report: TeleportReport) -> None:
        """Learn from a teleport that was accepted or refused."""
        self._refused = not report.accepted
        self.state = self.rule.update(self.state, np.bool_(report.accepted), report.cost)

    def refund(self, cost: float) -> None:
        """Take back compute that the last teleport was charged for and the training step used."""
        state, wasted = self.state, cost if self._refused else 0.0
        self.state = state._replace(
            spent=state.spent - cost, wasted=state.wasted - wasted, last=state.last - cost
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, as plain numbers."""
        numbers = {key: float(value) for key, value in self.state._asdict().items()}
        return {"every": self.rule.every, "horizon": self.rule.horizon, **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If keys are missing or unknown.
        """
        if set(state) != set(self.state_dict()):
            msg = f"state has keys {sorted(state)}, expected {sorted(self.state_dict())}"
            raise ValueError(msg)
        self.rule = Rule(state["every"], state["horizon"])
        numbers = {key: np.float64(state[key]) for key in State._fields}
        self.state = State(**numbers)
