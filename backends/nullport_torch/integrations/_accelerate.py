"""A teleporter for loops with ``accelerate``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from nullport import TeleportReport
from nullport_torch._teleporter import Teleporter
from nullport_torch.integrations import _parts

_COUNTS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many teleporters an accelerator saves."""


class AcceleratedTeleporter(Teleporter):
    """A ``Teleporter`` that knows an ``Accelerator``.

    It takes model and optimizer as ``prepare`` has returned them, is saved and loaded with
    ``accelerator.save_state`` and ``load_state`` (one file for each process), and counts steps of
    the optimizer, not batches: inside ``accelerator.accumulate``, a teleport sees the first batch
    of a window.
    """

    def __init__(self, accelerator: Any, model: Any, optimizer: Any, **options: Any) -> None:
        """Watch a model; options as for ``Teleporter``."""
        self._accelerator, self._first = accelerator, True
        super().__init__(accelerator.unwrap_model(model), optimizer, **options)
        self._which = _COUNTS.get(accelerator, 0)
        _COUNTS[accelerator] = self._which + 1
        # Objects that are registered for checkpointing are saved by the main process alone.
        accelerator.register_save_state_pre_hook(self._save_part)
        accelerator.register_load_state_pre_hook(self._load_part)

    def maybe_step(
        self, batch: Callable[..., Tensor], *given: Any, guard: Any = None, others: Any = None
    ) -> TeleportReport | None:
        """Count a step of the optimizer, and teleport if one is due; as ``Teleporter`` does."""
        first, self._first = self._first, bool(self._accelerator.sync_gradients)
        if not first:
            return None
        return super().maybe_step(batch, *given, guard=guard, others=others)

    def _save_part(self, _models: Any, _weights: Any, folder: str) -> None:
        _parts.save(self.state_dict(), folder, self._which)

    def _load_part(self, _models: Any, folder: str) -> None:
        state = _parts.load(folder, self._accelerator.device, self._which)
        if state is None:
            warnings.warn(
                f"there is no state of the teleporter in {folder}: its schedule starts anew",
                stacklevel=3,
            )
        else:
            self.load_state_dict(state)
