"""The training loop's body for torch: what ``nullport compare`` drives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from nullport import Rule, TeleportReport
from nullport.lab.compare import Settings, Task
from nullport.lab.compare.settings import NONE, NULLPORT
from nullport.lab.compare.task import Array, Batch
from nullport.network import GRADIENT
from nullport_torch._teleporter import Teleporter
from nullport_torch.lab.baselines.turns import Turns
from nullport_torch.lab.models import build

OPTIMIZERS: dict[str, Callable[[nn.Module, float], Optimizer]] = {
    "sgd": lambda model, lr: SGD(model.parameters(), lr),
    "momentum": lambda model, lr: SGD(model.parameters(), lr, momentum=0.9),
    "adagrad": lambda model, lr: Adagrad(model.parameters(), lr),
    "adam": lambda model, lr: Adam(model.parameters(), lr),
    "adamw": lambda model, lr: AdamW(model.parameters(), lr),
}

CHUNK = 500
"""Samples in one forward pass of an evaluation."""


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads inside, and with as many as before after that."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Strict(Teleporter):
    """Stops a measurement where a training loop would go on without a teleport."""

    def _decline(self, error: Exception) -> None:
        raise error


class TorchTrainer:
    """A torch network with its optimizer and teleporter; see ``nullport.lab.compare.Trainer``.

    Nothing global stays changed: neither random states nor the number of threads.
    """

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        """Make the network.

        Args:
            task: The data it will see.
            settings: Settings of the comparison.
            seed: Seed of the initialisation.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(task, settings)
        self._task, self._device, self._threads = task, settings.device, settings.threads
        self._reads_others = settings.teleport.objective in ("look_ahead", "others")
        self.model = model.to(settings.device)
        self._optimizer = OPTIMIZERS[settings.optimizer](self.model, settings.lr)
        self._captured: Batch | None = None
        self._teleporter = Strict(
            self.model,
            self._optimizer,
            every=settings.every,
            horizon=settings.budget,
            config=settings.teleport,
        )
        self._turns: Turns | None = None
        if settings.method not in (NULLPORT, NONE):
            rule = Rule.parse(settings.every, settings.budget)
            self._turns = Turns(settings.method, dict(settings.options), rule, seed)

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""
        return self._teleporter.due if self._turns is None else self._turns.due

    def set_lr(self, lr: float) -> None:
        """Set the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def teleport(
        self, batch: Batch, guard: Batch | None, others: Batch | None, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        """Teleport if one is due; return the report, if any, and the compute used."""
        if now is False or (others is None and self._reads_others and self._turns is None):
            return None, 0.0
        closure = self._closure(batch)
        try:
            with threads(self._threads):
                report = self._turn(closure, batch, guard, others, now)
        except ValueError:
            with torch.no_grad():
                if math.isfinite(float(closure())):
                    raise
            return None, 0.0  # diverged, which is the step's to say
        return report, 0.0 if report is None else report.cost

    def _turn(
        self,
        closure: Callable[[], Tensor],
        batch: Batch,
        guard: Batch | None,
        others: Batch | None,
        now: bool | None,
    ) -> TeleportReport | None:
        """Teleport by whatever method the settings name."""
        if self._turns is not None:
            return self._turns.teleport(self.model, self._loss, *self._tensors(batch), now=now)
        self._captured = batch
        given = [None if given is None else self._closure(given) for given in (guard, others)]
        teleport = self._teleporter.step if now else self._teleporter.maybe_step
        return teleport(closure, *given)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Make a training step; return the loss before it and the compute used."""
        ready = self._teleporter.gradient_ready and batch is self._captured
        with threads(self._threads):
            self._optimizer.zero_grad()
            closure = self._closure(batch)
            if ready:
                loss = self._teleporter.backward(closure)
            else:
                loss = closure()
                loss.backward()
            with self._turns.scaled(self._optimizer) if self._turns else contextlib.nullcontext():
                self._optimizer.step()
        return float(loss.detach()), 0.0 if ready else GRADIENT

    @torch.no_grad()
    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float | None]:
        """Return the mean loss, and the accuracy unless the task is a regression."""
        total, right = 0.0, 0
        for start in range(0, len(inputs), CHUNK):
            x, y = self._tensors((inputs[start : start + CHUNK], targets[start : start + CHUNK]))
            with threads(self._threads):
                outputs = self.model(x)
            total += float(self._loss(outputs, y)) * len(x)
            if self._task.kind != "regression":
                right += int((outputs.argmax(-1) == y).sum())
        accuracy = None if self._task.kind == "regression" else right / targets.size
        return total / len(inputs), accuracy

    def _closure(self, batch: Batch) -> Callable[[], Tensor]:
        x, y = self._tensors(batch)
        return lambda: self._loss(self.model(x), y)

    def _tensors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for a in batch)
        return x, y

    def weights(self) -> list[Array]:
        """Return copies of all parameters and floating buffers, in the model's order."""
        return [t.detach().cpu().numpy().copy() for t in self._state()]

    @torch.no_grad()
    def load(self, weights: Sequence[Array]) -> None:
        """Put back what :meth:`weights` returned."""
        self._captured = None  # a gradient of other weights
        pairs = list(zip(self._state(), weights, strict=True))  # all, before any is written
        for tensor, array in pairs:
            tensor.copy_(torch.from_numpy(array))

    def _state(self) -> list[Tensor]:
        buffers = (b for b in self.model.buffers() if b.is_floating_point())
        return [*self.model.parameters(), *buffers]

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._task.criterion is not None:
            loss: Tensor = self._task.criterion(outputs, targets)
            return loss
        if self._task.kind == "regression":
            return F.mse_loss(outputs, targets)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
