"""Linear mode connectivity: the loss on the straight line between two solutions.

With weights ``a`` and ``b``, ``w(t) = (1 - t) a + t b`` and L the training loss, the barrier is

    max_t [L(w(t)) - (1 - t) L(a) - t L(b)],    t = 0, 0.1, ..., 1

(Frankle et al., 2020). Near 0, both lie in one basin. The two solutions come from the same initial
weights and batches, with and without teleports; two solutions without teleports from different
seeds are measured too, for scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nullport.lab.backends import Backend
from nullport.lab.compare import Settings, Trainer
from nullport.lab.compare.results import plain
from nullport.lab.compare.task import Array, Task
from nullport.lab.compare.training import Training
from nullport.lab.suite.grid import Entry, Job, applies, plain_settings
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.tuning import Choice

POINTS = 11

ELSEWHERE = 500
"""Added to a seed to get another one, for the pair without teleports."""

OTHER_SEED = "baseline, another seed"
"""Name of the pair of solutions without teleports."""


@dataclass(frozen=True)
class Pairs:
    """The baseline of a cell and seed with the solution of every method.

    Attributes:
        base: The run without teleports.
        others: The runs to compare with it, by name.
    """

    base: Job
    others: tuple[tuple[str, Job], ...]

    @property
    def settings(self) -> Settings:
        """Settings of the run without teleports."""
        return self.base.settings

    @property
    def key(self) -> str:
        """What the result depends on."""
        return json.dumps(["connectivity", self.base.key, [job.key for _, job in self.others]])


def pairs(found: Sequence[Choice], section: Entry) -> Iterator[Pairs]:
    """Yield what to connect: at the rate that is tuned without teleports, so only they differ."""
    for choice in found:
        if choice.method != BASELINE or not applies(section, choice.cell):
            continue
        mine = [c for c in found if c.cell is choice.cell and c.method != BASELINE]
        for seed in range(min(int(section.get("seeds", 3)), choice.settings.seeds)):
            base = Job(BASELINE, choice.settings, seed)
            others = [
                (c.method, Job(c.method, replace(c.settings, lr=choice.settings.lr), seed))
                for c in mine
            ]
            others.append((OTHER_SEED, Job(BASELINE, choice.settings, seed + ELSEWHERE)))
            yield Pairs(base, tuple(others))


def measure(pairs: Pairs, task: Task, backend: Backend) -> dict[str, Any]:
    """Train, and return the barrier and the relative distance of every pair.

    Returns:
        ``{"barrier": {name: number}, "distance": {name: number}, "final_loss": ...}`` with the
        distance ``|a - b| / |a|``; None for numbers that are not finite.
    """
    trainer, here = _trained(pairs.base, task, backend)
    record: dict[str, dict[str, float]] = {"barrier": {}, "distance": {}}
    for name, job in pairs.others:
        _, there = _trained(job, task, backend)
        losses = [
            _loss(trainer, [(1 - t) * a + t * b for a, b in zip(here, there, strict=True)], task)
            for t in np.linspace(0, 1, POINTS).tolist()
        ]
        gap = _norm([a - b for a, b in zip(here, there, strict=True)])
        record["barrier"][name], record["distance"][name] = height(losses), gap / _norm(here)
    return {
        "key": pairs.key,
        "settings": plain_settings(pairs.settings),
        "seed": pairs.base.seed,
        **plain({**record, "final_loss": _loss(trainer, here, task)}),
    }


def height(losses: Sequence[float]) -> float:
    """Return the barrier of losses at equal distances, not a finite number if one is not.

    >>> height([1.0, 5.0, 3.0])
    3.0
    """
    if not np.isfinite(losses).all():
        return math.nan
    return float(np.max(np.array(losses) - np.linspace(losses[0], losses[-1], len(losses))))


def _trained(job: Job, task: Task, backend: Backend) -> tuple[Trainer, list[Array]]:
    assert backend.trainer is not None  # checked
    trainer: Trainer = backend.trainer(task, job.settings, job.seed)
    Training(job.arm, job.seed, trainer, task, job.settings, None, points=1).run()
    return trainer, trainer.weights()


def _loss(trainer: Trainer, weights: Sequence[Array], task: Task) -> float:
    trainer.load(weights)
    index = np.linspace(0, len(task.inputs) - 1, min(len(task.inputs), 2000)).astype(np.int64)
    return trainer.evaluate(task.inputs[index], task.targets[index])[0]


def _norm(weights: Sequence[Array]) -> float:
    return float(np.sqrt(sum(float((w.astype(np.float64) ** 2).sum()) for w in weights)))
