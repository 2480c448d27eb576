"""What a tuned grid says: every method at its own best rate against no teleports at theirs.

The change of a run is ``loss / baseline - 1`` for the same seed, initial weights and batches. Four
are taken: of the training loss at equal compute, at equal steps and at equal seconds, and of the
validation loss at equal compute. Between evaluations the logarithm of the loss is interpolated
along the axis; the comparison is made where the shorter of the two runs ends. Seconds are scaled
to the median over seeds, which a busy machine disturbs least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuning import Choice, Records, choices, loss

Record = Mapping[str, Any]
Name = tuple[str, ...]

AXES = {"spent": "equal compute", "step": "equal steps", "seconds": "equal seconds"}


@dataclass(frozen=True)
class Comparison:
    """A method on a cell.

    Attributes:
        name: Task with model, optimizer, schedule.
        method: Name of the method.
        choice: Its tuned settings.
        base: Those of the baseline.
        runs: Its runs, one per seed.
        base_runs: The runs without teleports of the same seeds.
        changes: Changes of the training loss per axis of ``AXES``, one per seed.
        valid: Changes of the validation loss at equal compute, one per seed.
    """

    name: Name
    method: str
    choice: Choice
    base: Choice
    runs: tuple[Record, ...]
    base_runs: tuple[Record, ...]
    changes: Mapping[str, tuple[float, ...]]
    valid: tuple[float, ...]

    @property
    def change(self) -> float:
        """Change of the training loss at equal compute, median over seeds."""
        return median(self.changes["spent"])

    @property
    def verdict(self) -> int:
        """-1 where the interval over seeds is below 0 (better), 1 where above, else 0."""
        low, high = interval(self.changes["spent"])
        return -1 if high < 0 else int(low > 0)

    @property
    def drifts(self) -> list[float]:
        """Change of the validation loss in every accepted teleport."""
        found = (d for run in self.runs for d in run["drift"])
        return [math.inf if d is None else float(d) for d in found]

    @property
    def share(self) -> float:
        """Share of the compute that teleports used, median over seeds."""
        return _median(1 - run["steps"] / max(run["spent"], 1) for run in self.runs)

    @property
    def slower(self) -> float:
        """Seconds for the same compute relative to the baseline's, median over seeds."""
        mine, base = (
            _median(run["seconds"] / max(run["spent"], 1) for run in runs)
            for runs in (self.runs, self.base_runs)
        )
        return mine / base - 1


def comparisons(grid: Grid, records: Records) -> list[Comparison]:
    """Return every method on every cell whose runs are there, in the order of the grid."""
    found = choices(grid, records)
    bases = {id(c.cell): c for c in found if c.method == BASELINE}
    made = []
    for choice in found:
        base = bases.get(id(choice.cell))
        if choice.method == BASELINE or base is None:
            continue
        pair = [_runs(choice, records), _runs(base, records)]
        seeds = sorted(s for s in pair[0].keys() & pair[1].keys() if pair[1][s]["finite"])
        if seeds:
            mine, theirs = ([runs[s] for s in seeds] for runs in pair)
            made.append(compared(choice, base, mine, theirs))
    return made


def compared(
    choice: Choice, base: Choice, mine: Sequence[Record], theirs: Sequence[Record]
) -> Comparison:
    """Compare runs of the same seeds, with and without teleports."""
    scales = [median(run["seconds"] for run in runs) for runs in (mine, theirs)]
    return Comparison(
        name_of(choice),
        choice.method,
        choice,
        base,
        tuple(mine),
        tuple(theirs),
        {
            axis: tuple(_change(a, b, axis, scales) for a, b in zip(mine, theirs, strict=True))
            for axis in AXES
        },
        tuple(_relative(a, b, "valid_loss") for a, b in zip(mine, theirs, strict=True)),
    )


def name_of(choice: Choice) -> Name:
    """Return task with model, or the label of the cell, then optimizer and schedule.

    A network out of the ordinary is named.
    """
    s = choice.settings
    if label := choice.cell.get("label"):
        return str(label), s.optimizer, s.schedule
    model = s.model if s.activation == "relu" else f"{s.activation} {s.model}"
    return f"{s.task}, {model}", s.optimizer, s.schedule


def _runs(choice: Choice, records: Records) -> dict[int, Record]:
    jobs: list[Job] = list(choice.jobs())
    return {job.seed: records[job.key] for job in jobs if job.key in records}


def _change(mine: Record, base: Record, axis: str, scales: Sequence[float]) -> float:
    """Return the relative change of the loss where the shorter run ends."""
    if not mine["finite"]:
        return math.inf
    if axis == "spent":  # both end with the budget
        return _relative(mine, base, "final_loss")
    curves = []
    for run, scale in zip((mine, base), scales, strict=True):
        places = np.array(run["curve"][axis], float)
        if axis == "seconds":
            places *= scale / max(run["seconds"], 1e-12)
        curves.append((places, np.array([_number(x) for x in run["curve"]["loss"]])))
    end = min(places[-1] for places, _ in curves)
    a, b = (_at(end, places, losses) for places, losses in curves)
    change = a / b - 1
    return change if math.isfinite(change) else math.inf


def _relative(mine: Record, base: Record, name: str) -> float:
    """Return the change of a loss, infinite where there is none or it was 0."""
    a, b = loss(mine, name), loss(base, name)
    if a == b:
        return 0.0 if math.isfinite(b) else math.inf
    return a / b - 1 if 0 < b < math.inf else math.inf


def _median(values: Iterable[float]) -> float:
    return float(median(values))


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _at(end: float, places: Any, losses: Any) -> float:
    return float(np.exp(np.interp(end, places, np.log(np.maximum(losses, 1e-12)))))
