"""When to teleport: early, and less often when it does not help.

A teleport is due after ``interval`` training steps. The interval grows by half after an accepted
teleport and doubles after a refused one, so that a run has a handful of early teleports and a
policy that always refuses costs next to nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FIRST = 10
GROW_ACCEPTED = 1.5
GROW_REFUSED = 2.0


@dataclass
class Schedule:
    """Counts training steps and says when a teleport is due.

    Attributes:
        every: Fixed number of steps between teleports, or None to adapt.
        step: Training steps so far.
        due: Step at which the next teleport is due.
        interval: Steps between teleports now.
    """

    every: int | None = None
    step: int = 0
    due: int = 0
    interval: float = FIRST

    def __post_init__(self) -> None:
        """Set the first due step."""
        if self.every is not None:
            self.interval = self.every
        self.due = self.due or int(self.interval)

    @staticmethod
    def parse(every: int | str) -> Schedule:
        """Make a schedule from the ``every`` argument of an adapter.

        Raises:
            ValueError: If it is neither ``"auto"`` nor a positive integer.

        >>> Schedule.parse(50).due
        50
        """
        if every == "auto":
            return Schedule()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            msg = f"invalid every: {every!r}; allowed: 'auto' or an integer of at least 1"
            raise ValueError(msg)
        return Schedule(every=every)

    def tick(self) -> bool:
        """Count a training step; return whether a teleport is due before it."""
        due = self.step >= self.due
        self.step += 1
        return due

    def update(self, *, accepted: bool) -> None:
        """Plan the next teleport after one that was accepted or refused."""
        if self.every is None:
            self.interval *= GROW_ACCEPTED if accepted else GROW_REFUSED
        self.due = self.step - 1 + int(self.interval)

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
