"""The record of one training run: its curve, its teleports, and what they amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A point of a training curve: compute, seconds and steps so far, the training loss there."""

    spent: float
    seconds: float
    loss: float
    step: int = 0


class Teleport(NamedTuple):
    """A teleport: training steps and compute before it, its compute, and its report's scalars.

    ``drift`` is the change of the validation loss, relative to it; None where it is not watched.
    """

    step: int
    spent: float
    cost: float
    report: Mapping[str, Any]
    drift: float | None = None


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        arm: ``"baseline"``, ``"teleport"``, or what a neighbour changes, as ``"lr 0.3"``.
        seed: Seed of the initialisation and of the batches.
        steps: Training steps made.
        spent: Compute spent, in gradients of a training batch.
        seconds: Wall-clock time of steps and teleports.
        valid_loss: Loss on validation data at the end.
        accuracy: Share of validation data classified correctly, or None for a regression.
        curve: Loss on a fixed part of the training data, first before the first step.
        teleports: The teleports, in order.
    """

    arm: str
    seed: int
    steps: int
    spent: float
    seconds: float
    valid_loss: float
    accuracy: float | None
    curve: tuple[Point, ...]
    teleports: tuple[Teleport, ...] = ()

    @property
    def final_loss(self) -> float:
        """Training loss at the end."""
        return self.curve[-1].loss

    @property
    def area(self) -> float:
        """Mean of the training loss over the compute spent (trapezoidal rule)."""
        pairs = list(zip(self.curve, self.curve[1:], strict=False))
        width = self.curve[-1].spent - self.curve[0].spent
        if not width:
            return self.final_loss
        return sum((b.spent - a.spent) * (a.loss + b.loss) / 2 for a, b in pairs) / width

    @property
    def accepted(self) -> int:
        """Number of teleports that were kept."""
        return sum(bool(teleport.report["accepted"]) for teleport in self.teleports)

    @property
    def refused(self) -> int:
        """Number of teleports that were undone."""
        return len(self.teleports) - self.accepted
