"""One training run: steps, and teleports before some of them, until the budget is spent.

Compute is counted in gradients of a training batch: a step costs 1, a teleport what it reports. No
step is made that the budget does not cover, and no teleport that would leave none to be made, as
far as the cost of earlier ones tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nullport import TeleportReport
from nullport.lab.compare.records import Point, Run, Teleport
from nullport.lab.compare.results import plain
from nullport.lab.compare.settings import NONE, NULLPORT, Settings
from nullport.lab.compare.task import Array, Batch, Task
from nullport.lab.compare.trainer import Trainer
from nullport.network import FORWARD, GRADIENT

POINTS = 30
"""Evaluations of the training loss during a run."""

SEVERAL = 4
"""Recent batches that judge together, where several do."""

EVALUATED = {"vector": 2000, "image": 2000, "sequence": 500, "tokens": 200}
"""Most samples that an evaluation takes, by form of the input."""

Progress = Callable[[str, int, float], None]
"""Called during a run with the arm, the seed and the compute spent so far."""


def batches(task: Task, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end, in an order fixed by the seed: epoch after epoch, shuffled."""
    generator = np.random.default_rng(seed)
    count = len(task.inputs) // size
    while True:
        order = generator.permutation(len(task.inputs))
        for index in np.split(order[: count * size], count):
            yield task.inputs[index], task.targets[index]


def learning_rate(settings: Settings, spent: float) -> float:
    """Return the learning rate after a part of the budget is spent.

    >>> learning_rate(Settings.make(lr=0.5, budget=100, schedule="cosine"), 50)
    0.25
    """
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * (1 + math.cos(math.pi * spent / settings.budget)) / 2


@dataclass
class Training:
    """One run under way.

    Attributes:
        arm: ``"teleport"``, or any other name for a run without teleports.
        seed: Seed of the batches.
        trainer: The network.
        task: The data.
        settings: Settings of the comparison.
        progress: Told of every step, or None.
        points: Evaluations of the training loss.
        watch: Whether to evaluate the validation loss around every teleport.
        sample: Evaluations take one sample in so many of those that they would take.
        spent: Compute so far, in gradients of a training batch.
        seconds: Time in steps and teleports so far.
        steps: Training steps so far.
        curve: Evaluations so far.
        teleports: Teleports so far.
    """

    arm: str
    seed: int
    trainer: Trainer
    task: Task
    settings: Settings
    progress: Progress | None
    points: int = POINTS
    watch: bool = False
    sample: int = 1
    spent: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    curve: list[Point] = field(default_factory=list)
    teleports: list[Teleport] = field(default_factory=list)

    def run(self) -> Run:
        """Train until the budget is spent or the loss is no number, then evaluate."""
        self._evaluate()
        before: list[Batch] = []
        for batch in batches(self.task, self.settings.batch, self.seed):
            # Set once for a teleport and the step after it, which is the one it prepares.
            self.trainer.set_lr(learning_rate(self.settings, self.spent))
            teleports = self.arm == "teleport" and self.settings.method != NONE
            if teleports and self._affordable(1 + self._dearest):
                self._teleport(batch, before)
            if not self._affordable(1) or not self._step(batch):
                break
            before = [batch, *before[: SEVERAL - 1]]
        return self._finish()

    @property
    def _dearest(self) -> float:
        return max((teleport.cost for teleport in self.teleports), default=0.0)

    def _affordable(self, cost: float) -> bool:
        return self.spent + cost <= self.settings.budget + 1e-9

    def _teleport(self, batch: Batch, before: Sequence[Batch]) -> None:
        """Let the trainer teleport: the last batch guards, the one before may be read."""
        last = before[0] if before else None
        others = before[1] if len(before) > 1 else None
        guard = {"another": last, "same": others, "several": _joined(before)}[self.settings.judge]
        guard = guard if self.settings.guard else None
        size = self.settings.captured
        captured = batch if size == "batch" else (batch[0][:size], batch[1][:size])
        now = self.steps in self.settings.at if self.settings.at else None
        watched = self.watch and (self.trainer.due if now is None else now)
        before_it = self._valid()[0] if watched else math.nan
        start = time.perf_counter()
        report, cost = self.trainer.teleport(captured, guard, others, now=now)
        self.seconds += time.perf_counter() - start
        if report is not None:
            cost = self._charge(cost, report, len(captured[0]), guard)
            record = plain(report.as_dict())
            drift = self._valid()[0] / before_it - 1 if watched else None
            self.teleports.append(Teleport(self.steps, self.spent, cost, record, drift))
        self.spent += cost

    def _charge(
        self, cost: float, report: TeleportReport, captured: int, guard: Batch | None
    ) -> float:
        """Convert gradients of the captured batch into those of a training batch."""
        batch = self.settings.batch
        if self.settings.method != NULLPORT:
            return cost * captured / batch
        reads = self.settings.teleport.objective in ("auto", "look_ahead", "others")
        others = GRADIENT if reads else 0.0
        judged = 0.0 if guard is None or report.guard_before is None else 2 * FORWARD
        own = (cost - others - judged) * captured / batch
        return own + others + judged * (1 if guard is None else len(guard[0]) / batch)

    def _step(self, batch: Batch) -> bool:
        """Make a training step; return whether the loss was a finite number."""
        start = time.perf_counter()
        loss, cost = self.trainer.step(batch)
        self.seconds += time.perf_counter() - start
        self.spent += cost
        self.steps += 1
        if self.spent >= self.settings.budget * len(self.curve) / self.points:
            self._evaluate()
        if self.progress is not None:
            self.progress(self.arm, self.seed, self.spent)
        return math.isfinite(loss)

    def _evaluate(self) -> None:
        loss, _ = self.trainer.evaluate(*self._part(self.task.inputs, self.task.targets))
        self.curve.append(Point(self.spent, self.seconds, _number(loss), self.steps))

    def _valid(self) -> tuple[float, float | None]:
        return self.trainer.evaluate(*self._part(self.task.valid_inputs, self.task.valid_targets))

    def _part(self, inputs: Array, targets: Array) -> Batch:
        """Return the samples that evaluations take, always the same, evenly spread."""
        most = min(len(inputs), -(-EVALUATED[self.task.form] // self.sample))
        index = np.linspace(0, len(inputs) - 1, most).astype(np.int64)
        return inputs[index], targets[index]

    def _finish(self) -> Run:
        if self.curve[-1].spent < self.spent:
            self._evaluate()
        loss, accuracy = self._valid()
        return Run(
            arm=self.arm,
            seed=self.seed,
            steps=self.steps,
            spent=self.spent,
            seconds=self.seconds,
            valid_loss=_number(loss),
            accuracy=accuracy,
            curve=tuple(self.curve),
            teleports=tuple(self.teleports),
        )


def _joined(batches: Sequence[Batch]) -> Batch | None:
    """Return several batches as one, None if there are none."""
    if not batches:
        return None
    inputs, targets = zip(*batches, strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def _number(loss: float) -> float:
    """Return the loss, infinite where training has diverged to nan."""
    return math.inf if math.isnan(loss) else loss
