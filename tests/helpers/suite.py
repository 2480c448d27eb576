"""Grids, records and a network of one weight, for tests of the suite that train nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nullport import TeleportReport
from nullport._report import Cause
from nullport.lab.backends import Backend
from nullport.lab.compare import Settings, Task
from nullport.lab.suite.grid import Grid, Job, plain_settings

TUNED = """
[defaults]
seeds = 3
budget = 12
width = 8
depth = 1
batch = 8

[tune]
seeds = 1

[rates]
sgd = [0.01, 0.1, 1.0]

[[cells]]
task = "digits"
optimizer = "sgd"

[methods.nullport]
note = "the default"
at = [3, 6]

[methods.paper]
at = [3]
teleport = { objective = "grad_norm", radius = [0.1, 0.3] }

[methods.random]
method = "random"
at = [3]
options = { rate = [0.1, 0.2, 0.5], steps = 2 }
"""

PARTS = """
[sensitivity]
seeds = 2
exclude = [["1.*"]]

[connectivity]
seeds = 2
"""


def grid(folder: Path, text: str = TUNED) -> Grid:
    """Read a grid from its text."""
    path = folder / "grid.toml"
    path.write_text(text)
    return Grid.read(path)


def record(job: Job, loss: float | None, **given: Any) -> dict[str, Any]:
    """Return the record of a run of 100 steps whose loss halves at once and then stays."""
    made = {
        "key": job.key,
        "settings": plain_settings(job.settings),
        "seed": job.seed,
        "versions": {"toy": "1"},
        "final_loss": loss,
        "valid_loss": loss,
        "accuracy": None,
        "area": loss,
        "finite": loss is not None,
        "steps": 100,
        "spent": 100.0,
        "seconds": 1.0,
        "accepted": 0,
        "refused": 0,
        "teleport_cost": 0.0,
        "drift": [],
    }
    last = given.get("final_loss", loss)
    first = 2 * (last or 1.0)
    points = {"spent": [0.0, 100.0], "seconds": [0.0, 1.0], "step": [0, 100], "loss": [first, last]}
    return {**made, "curve": points, **given}


def decaying(job: Job, rate: float, steps: int, seconds: float, **given: Any) -> dict[str, Any]:
    """Return the record of a run with loss ``exp(-rate step)`` and a compute of 100 throughout."""
    done = np.linspace(0, 1, 11)
    curve = {
        "spent": (100 * done).tolist(),
        "seconds": (seconds * done).tolist(),
        "step": (steps * done).tolist(),
        "loss": np.exp(-rate * steps * done).tolist(),
    }
    loss = math.exp(-rate * steps)
    return record(job, loss, steps=steps, seconds=seconds, curve=curve, **given)


class OneWeight:
    """A trainer with a single weight, -1 at first: a step shrinks what is above the minimum.

    A teleport turns the sign of the weight.
    """

    loss: Callable[[float], float] = staticmethod(lambda w: (w * w - 1) ** 2 + 0.5)

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        self.weight, self.seed = -1.0, seed

    due = False

    def set_lr(self, lr: float) -> None:
        """Take no notice."""

    def teleport(
        self, batch: Any, guard: Any, others: Any, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        if not now:
            return None, 0.0
        self.weight = -self.weight
        return TeleportReport(1.0, 1.0, 1.0, math.inf, 0.1, Cause.NONE, cost=2.0), 2.0

    def step(self, batch: Any) -> tuple[float, float]:
        return self.loss(self.weight), 1.0

    def evaluate(self, inputs: Any, targets: Any) -> tuple[float, float | None]:
        return self.loss(self.weight), None

    def weights(self) -> list[Any]:
        return [np.array([self.weight])]

    def load(self, weights: Any) -> None:
        self.weight = float(weights[0][0])


class Convex(OneWeight):
    """A quadratic loss instead of a double well."""

    loss = staticmethod(lambda w: (w + 0.5) ** 2 + 0.5)


def backend(trainer: Any = OneWeight) -> Backend:
    """Return a backend of such trainers, which has the random move too."""
    return Backend("toy", lambda: {"toy": "1"}, lambda: ["cpu"], list, trainer, ("random",))


def task() -> Task:
    """Return a task that every setting fits."""
    x, y = np.zeros((40, 2), np.float32), np.zeros((40, 1), np.float32)
    return Task("digits", "regression", 1, x, y, x, y)
