"""What the records of a grid say: the change that a method makes in every cell, with intervals.

A cell is one combination of settings; its runs differ by the seed. The change of a run is
``loss / baseline - 1`` for the same seed, initial weights and batches. A cell's change is the
median over seeds. The *tuned* learning rate of a task, model, optimizer and initialisation is the
one with the lowest median training loss without teleports.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.suite.grid import Job
from nullport.lab.suite.schema import BASELINE

RESAMPLES = 2000

HUGE = 1e100
"""Stands for infinity, of which there are no means; what is above its root came of it."""

Name = tuple[str, str, str, str]
"""Task, model, optimizer, initialisation."""


@dataclass(frozen=True)
class Cell:
    """A cell under one method.

    Attributes:
        name: Task, model, optimizer, initialisation.
        lr: Learning rate.
        rate: ``lr`` relative to the tuned one.
        baseline: Training loss without teleports, median over seeds.
        spread: Range of the baseline over seeds, relative to its median.
        train: Change of the final training loss, one per seed.
        valid: Change of the validation loss, one per seed.
        accepted: Teleports accepted, mean over seeds.
        refused: Teleports refused, mean over seeds.
        share: Share of the compute that teleports used, largest over seeds.
        broken: Runs that were finite without teleports and are not with them.
    """

    name: Name
    lr: float
    rate: float
    baseline: float
    spread: float
    train: tuple[float, ...]
    valid: tuple[float, ...]
    accepted: float
    refused: float
    share: float
    broken: int

    @property
    def change(self) -> float:
        """Change of the training loss, median over seeds."""
        return median(self.train)

    @property
    def worse(self) -> bool:
        """Whether the change is beyond 3 % and beyond the baseline's own range over seeds."""
        return self.change > max(0.03, self.spread)


def cells(jobs: Sequence[Job], records: Mapping[str, Mapping[str, Any]], method: str) -> list[Cell]:
    """Return the cells of a method whose runs are all there, in the order of the grid."""
    base = _grouped(jobs, records, BASELINE)
    mine = _grouped(jobs, records, method)
    tuned = _tuned(base)
    return [
        _cell(key, base[key], runs, tuned[key[0]])
        for key, runs in mine.items()
        if key in base and _comparable(base[key], runs)
    ]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval of the median, by percentiles.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    if len(values) < 2:
        return float(values[0]), float(values[0])
    found = require("scipy.stats").bootstrap(
        (np.minimum(values, HUGE),), np.median, confidence_level=level,
        n_resamples=RESAMPLES, method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    low, high = (math.inf if end > math.sqrt(HUGE) else float(end) for end in found)
    return low, high


_Key = tuple[Name, float]
_Runs = dict[int, Mapping[str, Any]]


def _grouped(
    jobs: Sequence[Job], records: Mapping[str, Mapping[str, Any]], method: str
) -> dict[_Key, _Runs]:
    groups: dict[_Key, _Runs] = defaultdict(dict)
    for job in jobs:
        if job.method == method and job.key in records:
            s = job.settings
            groups[(s.task, str(s.model), s.optimizer, s.init), s.lr][job.seed] = records[job.key]
    return groups


def _tuned(base: Mapping[_Key, _Runs]) -> dict[Name, float]:
    best: dict[Name, tuple[float, float]] = {}
    for (name, lr), runs in base.items():
        loss = median(_loss(run, "final_loss") for run in runs.values())
        best[name] = min(best.get(name, (math.inf, lr)), (loss, lr))
    return {name: lr for name, (_, lr) in best.items()}


def _loss(run: Mapping[str, Any], key: str) -> float:
    return math.inf if run[key] is None else float(run[key])


def _comparable(base: _Runs, mine: _Runs) -> bool:
    """Whether at least one seed has a finite baseline to compare with."""
    return any(seed in base and base[seed]["finite"] for seed in mine)


def _cell(key: _Key, base: _Runs, mine: _Runs, tuned: float) -> Cell:
    (name, lr), seeds = key, [seed for seed in mine if seed in base and base[seed]["finite"]]

    def changes(metric: str) -> tuple[float, ...]:
        return tuple(_loss(mine[s], metric) / _loss(base[s], metric) - 1 for s in seeds)

    losses = [_loss(base[s], "final_loss") for s in seeds]
    runs = [mine[s] for s in seeds]
    return Cell(
        name=name,
        lr=lr,
        rate=lr / tuned,
        baseline=median(losses),
        spread=(max(losses) - min(losses)) / median(losses),
        train=changes("final_loss"),
        valid=changes("valid_loss"),
        accepted=float(np.mean([run["accepted"] for run in runs])),
        refused=float(np.mean([run["refused"] for run in runs])),
        # A step whose gradient a teleport handed over costs nothing: the rest is the teleports'.
        share=max((run["spent"] - run["steps"]) / max(run["spent"], 1) for run in runs),
        broken=sum(not run["finite"] for run in runs),
    )
