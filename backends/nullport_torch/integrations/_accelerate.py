"""A teleporter for loops with ``accelerate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nullport import TeleportReport
from nullport_torch._teleporter import Teleporter


class AcceleratedTeleporter(Teleporter):
    """A ``Teleporter`` that knows an ``Accelerator``.

    It takes model and optimizer as ``prepare`` has returned them, is saved and loaded with
    ``accelerator.save_state`` and ``load_state``, and counts steps of the optimizer, not batches:
    inside ``accelerator.accumulate``, a teleport sees the first batch of a window.
    """

    def __init__(self, accelerator: Any, model: Any, optimizer: Any, **options: Any) -> None:
        """Watch a model; options as for ``Teleporter``."""
        self._accelerator, self._first = accelerator, True
        super().__init__(accelerator.unwrap_model(model), optimizer, **options)
        accelerator.register_for_checkpointing(self)

    def maybe_step(
        self, batch: Callable[..., Tensor], *given: Any, guard: Any = None, others: Any = None
    ) -> TeleportReport | None:
        """Count a step of the optimizer, and teleport if one is due; as ``Teleporter`` does."""
        first, self._first = self._first, bool(self._accelerator.sync_gradients)
        if not first:
            return None
        return super().maybe_step(batch, *given, guard=guard, others=others)
