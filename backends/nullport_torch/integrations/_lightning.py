"""A callback of Lightning: teleports before training steps, as part of its checkpoints."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nullport_torch._teleporter import Teleporter
from nullport_torch.integrations import _parts

if TYPE_CHECKING:

    class Callback:
        """What a callback has, as far as types are concerned."""

        state_key: str
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

Loss = Callable[[Any, Any], Tensor]
"""Returns the loss of a module on a batch; calls no backward and logs nothing."""

_LOGGING = ("log", "log_dict", "toggle_optimizer", "untoggle_optimizer")


class LightningCallback(Callback):
    """Teleports the module that a Lightning ``Trainer`` trains.

    The loss is that of ``training_step``, with logging silenced. Optimizers, clipping, precision
    and accumulation are read from the trainer; with accumulation, a teleport sees the first batch
    of a window. Metrics, buffers and random states do not notice. The schedule and the kept
    batches are in Lightning's checkpoints. Reports go to the trainer's loggers, as
    ``nullport/...``.
    """

    def __init__(self, loss: Loss | None = None, **options: Any) -> None:
        """Make the callback.

        Args:
            loss: The loss of a module on a batch; the loss that ``training_step`` returns, if None.
                It has to be given with manual optimisation, where ``training_step`` takes the
                optimizer's step itself.
            **options: What ``Teleporter`` takes, beside model and optimizer.
        """
        self._loss, self._options = loss, options
        self._saved: dict[str, Any] | None = None
        self.teleporter: Teleporter | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the module, now that its optimizers are there."""
        self.teleporter = None
        if self._loss is None and not pl_module.automatic_optimization:
            warnings.warn(
                "no teleport: with manual optimisation training_step takes the step itself; give "
                "LightningCallback(loss=...), a function of the module and a batch",
                stacklevel=2,
            )
            return
        options = {"clip": _clip(trainer), **self._options}
        optimizers = list(trainer.optimizers)
        self.teleporter = Teleporter(pl_module, optimizers or None, **options)
        if self._saved is not None:
            self.teleporter.load_state_dict(self._saved)
            self._saved = None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Teleport, if one is due, before the first batch of an optimizer's step."""
        if self.teleporter is None or batch_idx % trainer.accumulate_grad_batches:
            return
        report = self.teleporter.maybe_step(_step(self._loss, trainer, pl_module, batch_idx), batch)
        if report is not None:
            for logger in trainer.loggers:
                logger.log_metrics(report.scalars("nullport/"), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process's teleporter."""
        if self.teleporter is None:
            return {} if self._saved is None else self._saved
        return self.teleporter.state_dict()

    def on_save_checkpoint(
        self,
        trainer: Any,  # noqa: ARG002
        pl_module: Any,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Put the states of all processes into the checkpoint, which the first of them writes."""
        parts = {"parts": _parts.gathered(self.state_dict())}
        checkpoint["callbacks"][self.state_key] = parts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume, as soon as training starts."""
        parts = state_dict.get("parts", [state_dict])
        self._saved = _parts.own(parts) or None


def _step(loss: Loss | None, trainer: Any, module: Any, batch_idx: int) -> Callable[[Any], Tensor]:
    """Return the loss as a function of a batch."""

    def closure(batch: Any) -> Tensor:
        with _silent(module), trainer.precision_plugin.train_step_context():
            if loss is not None:
                return loss(module, batch)
            out = module.training_step(batch, batch_idx)
        found: Tensor = out["loss"] if isinstance(out, dict) else out
        return found

    return closure


def _clip(trainer: Any) -> Any:
    """Return how the trainer clips gradients."""
    limit, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    if not limit:
        return None
    return (str(getattr(algorithm, "value", algorithm) or "norm"), float(limit))


@contextlib.contextmanager
def _silent(module: Any) -> Iterator[None]:
    """Let the module log nothing."""
    before = {name: vars(module)[name] for name in _LOGGING if name in vars(module)}
    try:
        for name in _LOGGING:
            vars(module)[name] = lambda *_, **__: None
        yield
    finally:
        for name in _LOGGING:
            vars(module).pop(name, None)
        vars(module).update(before)
