"""Hugging Face's ``Trainer`` with teleports: a mixin, for it brings batches together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nullport_torch._teleporter import Teleporter
from nullport_torch.integrations import _parts

if TYPE_CHECKING:

    class Base:
        """What a trainer has, as far as types are concerned."""

        def __getattr__(self, name: str) -> Any: ...

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]: ...

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None: ...

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None: ...

    class Trainer: ...
else:
    from transformers import Trainer

    Base = object


class TeleportMixin(Base):
    """Adds teleports to a subclass of ``transformers.Trainer``.

    It comes before the trainer::

        class MyTrainer(TeleportMixin, Trainer): ...
        MyTrainer(model, args, train_dataset=..., teleport={"every": 50})

    A teleport sees all micro-batches of the next optimizer's step, with the loss that training
    computes; ``max_grad_norm`` is read from the arguments. The schedule and the kept batches are
    saved in every checkpoint. Reports go to ``Trainer.log``, as ``nullport/...``.

    Attributes:
        teleporter: The teleporter, once training has begun.
    """

    def __init__(self, *args: Any, teleport: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Make the trainer.

        Args:
            *args: As for ``Trainer``.
            teleport: What ``Teleporter`` takes, beside model and optimizer.
            **kwargs: As for ``Trainer``.
        """
        self._teleport = dict(teleport or {})
        self._saved: dict[str, Any] | None = None
        self.teleporter: Teleporter | None = None
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the batches of the next step, after a teleport on them, if one is due."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        if samples:
            if self.teleporter is None:
                self.teleporter = self._watched()
            report = self.teleporter.maybe_step(self._loss_of, [samples, items])
            if report is not None:
                self.log(report.scalars("nullport/"))
        return samples, items

    def _watched(self) -> Teleporter:
        """Return a teleporter of the model, now that there is an optimizer."""
        clip = self.args.max_grad_norm or None
        teleporter = Teleporter(self.model, self.optimizer, **{"clip": clip, **self._teleport})
        if self._saved is not None:
            teleporter.load_state_dict(self._saved)
            self._saved = None
        return teleporter

    def _loss_of(self, batch: list[Any]) -> Tensor:
        """Return the loss of a step, over all its micro-batches, as training computes it."""
        samples, items = batch
        self.model.train()
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = self.model_accepts_loss_kwargs and items is not None
            scaled = counted or self.compute_loss_func is not None
        total = torch.zeros((), device=self.args.device)
        for sample in samples:
            inputs = self._prepare_inputs(dict(sample))
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=items)
            total = total + (loss if scaled else loss / len(samples))
        return total

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the state of the teleporter beside that of the optimizer."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.teleporter is not None:  # of every process, for each keeps batches of its own
            _parts.save(self.teleporter.state_dict(), output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load it again."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._saved = _parts.load(checkpoint, self.args.device)
            self.teleporter = None if self._saved is not None else self.teleporter


class TeleportingTrainer(TeleportMixin, Trainer):
    """``transformers.Trainer`` with teleports; ``teleport={...}`` is what ``Teleporter`` takes."""
