"""When to teleport and how far: nothing to tune.

- *When*: early, after ``FIRST`` training steps, then at intervals that grow slowly after an
  accepted teleport and double after a refused one.
- *How far*: a trust region carried across teleports. The radius doubles after an acceptance and is
  quartered after a refusal; there is no inner search.
- *How much*: teleports may use at most ``SHARE`` of the compute, refused ones at most
  ``SHARE_REFUSED``, both counted against at least ``horizon`` steps, the expected length of the
  run, so that early teleports are possible at all. One that would exceed its share is not made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from nullport._config import TeleportConfig
from nullport._report import TeleportReport

FIRST = 10
GROW_ACCEPTED, GROW_REFUSED = 1.25, 2.0
SHARE, SHARE_REFUSED, HORIZON = 0.03, 0.01, 1000
RADIUS, WIDEN, NARROW = 0.1, 2.0, 0.25
SMALLEST, LARGEST = 1e-4, 1.0


@dataclass
class Policy:
    """Counts training steps, says when a teleport is due, and learns from its outcome.

    Attributes:
        every: Fixed number of steps between teleports (then no share is kept to), or None.
        horizon: Training steps the run is expected to take.
        step: Training steps so far.
        due: Step before which the next teleport is due.
        interval: Steps between teleports now.
        radius: Relative length of the next move.
        spent: Compute used by teleports, in gradients.
        wasted: Part of it used by refused ones.
        last: Compute used by the last teleport.
    """

    every: int | None = None
    horizon: int = HORIZON
    step: int = 0
    due: int = -1
    interval: float = FIRST
    radius: float = RADIUS
    spent: float = 0.0
    wasted: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        """Set the first due step."""
        if self.every is not None:
            self.interval = self.every
        if self.due < 0:
            self.due = int(self.interval)

    @staticmethod
    def parse(every: int | str, horizon: int = HORIZON) -> Policy:
        """Make a policy from the arguments of an adapter.

        Raises:
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer, or ``horizon``
                is no positive integer.

        >>> Policy.parse(50).due
        50
        """
        if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
            msg = f"invalid horizon: {horizon!r}; allowed: an integer of at least 1"
            raise ValueError(msg)
        if every == "auto":
            return Policy(horizon=horizon)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            msg = f"invalid every: {every!r}; allowed: 'auto' or an integer of at least 1"
            raise ValueError(msg)
        return Policy(every=every, horizon=horizon)

    def tick(self) -> bool:
        """Count a training step; return whether a teleport is due before it."""
        due = self.step >= self.due and self._affordable()
        self.step += 1
        return due

    def near(self, steps: int) -> bool:
        """Whether a teleport is due within the next ``steps`` steps: batches are worth keeping."""
        return self.step + steps >= self.due

    def _affordable(self) -> bool:
        if self.every is not None:
            return True
        horizon = max(self.step, self.horizon)
        within = self.spent + self.last <= SHARE * horizon
        return within and (not self.wasted or self.wasted + self.last <= SHARE_REFUSED * horizon)

    def settings(self, config: TeleportConfig) -> TeleportConfig:
        """Return the configuration of the next teleport, with the trust region's radius."""
        return replace(config, radius=self.radius) if config.radius == "auto" else config

    def update(self, report: TeleportReport) -> None:
        """Learn from a teleport that was accepted or refused."""
        factor, grow = (WIDEN, GROW_ACCEPTED) if report.accepted else (NARROW, GROW_REFUSED)
        self.radius = min(max(self.radius * factor, SMALLEST), LARGEST)
        if self.every is None:
            self.interval *= grow
        self.due = self.step - 1 + int(self.interval)
        self.last = report.cost
        self.spent += report.cost
        self.wasted += 0.0 if report.accepted else report.cost

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If keys are missing or unknown.
        """
        if set(state) != set(self.state_dict()):
            msg = f"state has keys {sorted(state)}, expected {sorted(self.state_dict())}"
            raise ValueError(msg)
        for key, value in state.items():
            setattr(self, key, value)
