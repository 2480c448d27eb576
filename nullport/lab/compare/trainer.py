"""What a backend supplies to the comparison: a network in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nullport import TeleportReport
from nullport.lab.compare.task import Array, Batch


class Trainer(Protocol):
    """A network with its optimizer and its teleports.

    ``backend.trainer(task, settings, seed)`` makes one; the same arguments give the same network.
    Batches are pairs of inputs and targets, NumPy arrays as :class:`nullport.lab.compare.Task` has
    them.
    """

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the teleports and steps that follow."""

    def teleport(
        self, batch: Batch, guard: Batch | None, others: Batch | None, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        """Teleport if one is due, before the training step on ``batch``.

        Args:
            batch: The batch of the step, or the part of it that teleports are made from.
            guard: Other samples that have a say, or None.
            others: Yet other samples, for objectives that read some; None in the first two steps.
            now: Whether one is due; None to leave it to the policy.

        Returns:
            The report, None if no teleport was due, and the compute used, in gradients of
            ``batch``.
        """

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""

    def weights(self) -> list[Array]:
        """Return copies of all parameters and floating-point buffers, in a fixed order."""

    def load(self, weights: Sequence[Array]) -> None:
        """Put back what :meth:`weights` returned, maybe of another run."""

    def step(self, batch: Batch) -> tuple[float, float]:
        """Make a training step.

        Returns:
            The loss before it, which may be infinite or nan, and the compute used, in gradients:
            1, or 0 where the teleport on the same batch has just computed the gradient.
        """

    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float | None]:
        """Return the mean loss over samples, and the accuracy if targets are classes."""
