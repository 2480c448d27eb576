"""Tuning: every method gets the best of the same learning rates, found with the same budget.

A trial is a run on a seed that no result uses. The best rate is the one with the lowest median
training loss at the end; a run that diverged counts as infinite. Where a method has
settings to tune besides the rate, it gets more trials than the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from nullport.lab.compare import Settings
from nullport.lab.suite.grid import Entry, Grid, Job

FIRST = 1000
"""The first seed of trials; those of results count from 0."""

Records = Mapping[str, Mapping[str, Any]]
"""Records by key."""


@dataclass(frozen=True)
class Choice:
    """What tuning chose for one method on one cell.

    Attributes:
        cell: The cell.
        method: Name of the method.
        settings: The settings chosen.
        edge: Whether the rate is the lowest or highest of those tried.
    """

    cell: Entry
    method: str
    settings: Settings
    edge: bool

    def jobs(self) -> Iterator[Job]:
        """Yield the runs of the results."""
        yield from (Job(self.method, self.settings, seed) for seed in range(self.settings.seeds))


def trials(grid: Grid) -> Iterator[Job]:
    """Yield the runs that tuning needs: none where there is nothing to choose from."""
    assert grid.tune is not None
    for i in range(int(grid.tune.get("seeds", 1))):
        for cell, method in grid.pairs():
            tried = grid.trials(cell, method)
            for settings in tried if len(tried) > 1 else []:
                yield Job(method, settings, FIRST + i)


def choices(grid: Grid, records: Records) -> list[Choice]:
    """Return what tuning chose, for every method and cell whose trials are all there."""
    assert grid.tune is not None
    seeds = range(FIRST, FIRST + int(grid.tune.get("seeds", 1)))
    found = []
    for cell, method in grid.pairs():
        tried = grid.trials(cell, method)
        if len(tried) == 1:
            found.append(Choice(cell, method, tried[0], edge=False))
            continue
        losses = [_median(method, settings, seeds, records) for settings in tried]
        known = [value for value in losses if value is not None]
        if len(known) < len(tried):
            continue
        best = tried[known.index(min(known))]
        rates = sorted({settings.lr for settings in tried})
        found.append(
            Choice(cell, method, best, len(rates) > 1 and best.lr in (rates[0], rates[-1]))
        )
    return found


def loss(record: Mapping[str, Any], name: str = "final_loss") -> float:
    """Return a loss of a record, infinite where the run diverged."""
    return math.inf if record[name] is None else float(record[name])


def _median(method: str, settings: Settings, seeds: range, records: Records) -> float | None:
    keys = [Job(method, settings, seed).key for seed in seeds]
    if not all(key in records for key in keys):
        return None
    return median(loss(records[key]) for key in keys)
