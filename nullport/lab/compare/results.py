"""What came out of a comparison: all runs, their statistics, and the way to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from nullport.lab.compare.records import Point, Run, Teleport
from nullport.lab.compare.settings import Settings
from nullport.lab.compare.teleports import from_text, record_of


class Statistic(NamedTuple):
    """Mean and standard deviation over seeds; the latter is 0 for one seed."""

    mean: float
    std: float


METRICS: dict[str, Callable[[Run], float | None]] = {
    "final_loss": lambda run: run.final_loss,
    "area": lambda run: run.area,
    "valid_loss": lambda run: run.valid_loss,
    "accuracy": lambda run: run.accuracy,
    "seconds": lambda run: run.seconds,
    "steps": lambda run: run.steps,
    "accepted": lambda run: run.accepted,
    "refused": lambda run: run.refused,
}
"""What is measured of every run; None where it has no meaning."""


@dataclass(frozen=True)
class Results:
    """A comparison.

    Attributes:
        settings: What was compared.
        versions: Versions of all software involved.
        runs: Every run.
    """

    settings: Settings
    versions: Mapping[str, str]
    runs: tuple[Run, ...]

    def arms(self) -> list[str]:
        """Return the names of the arms, in the order they were run."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """Return the runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == arm]

    def summary(self) -> dict[str, dict[str, Statistic]]:
        """Return the statistics over seeds of every metric, per arm and for the difference.

        The entry ``"difference"`` is of teleport minus baseline within each seed.
        """
        values = {arm: _measure(self.of(arm)) for arm in self.arms()}
        table = {arm: {k: statistic(v) for k, v in m.items()} for arm, m in values.items()}
        if {"baseline", "teleport"} <= values.keys():
            table["difference"] = self.difference("baseline")
        return table

    def difference(self, arm: str) -> dict[str, Statistic]:
        """Return the statistics of teleport minus another arm within each seed, per metric."""
        theirs, ours = _measure(self.of(arm)), _measure(self.of("teleport"))
        return {
            name: statistic(b - a for a, b in zip(base, ours[name], strict=True))
            for name, base in theirs.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return settings, versions, summary and runs for JSON; numbers that are none are None."""
        summary = {
            arm: {name: value._asdict() for name, value in metrics.items()}
            for arm, metrics in self.summary().items()
        }
        runs = [
            {
                **asdict(run),
                "curve": {
                    name: [getattr(point, name) for point in run.curve] for name in Point._fields
                },
                "teleports": [t._asdict() for t in run.teleports],
            }
            for run in self.runs
        ]
        record: dict[str, Any] = {
            "settings": record_of(self.settings),
            "versions": dict(self.versions),
            "summary": summary,
            "runs": runs,
        }
        return {name: plain(value) for name, value in record.items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Results:
        """Return the results that :meth:`as_dict` was called on.

        Raises:
            ValueError: If a function of the user's was given, not named as FILE.py:FUNCTION: JSON
                cannot hold it.
        """
        settings = dict(record["settings"])
        settings["teleport"] = from_text(settings["teleport"])
        return cls(Settings(**settings), record["versions"], tuple(map(_run, record["runs"])))


def statistic(values: Iterable[float]) -> Statistic:
    """Return mean and standard deviation; both nan if any value is not finite.

    >>> statistic([1.0, 3.0]).mean
    2.0
    """
    numbers = list(values)
    if not all(map(math.isfinite, numbers)):
        return Statistic(math.nan, math.nan)
    return Statistic(fmean(numbers), stdev(numbers) if len(numbers) > 1 else 0.0)


def plain(value: Any) -> Any:
    """Return nested containers as JSON has them; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _measure(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the values over seeds of every metric that has a meaning here."""
    table: dict[str, list[float]] = {}
    for name, metric in METRICS.items():
        values = [value for run in runs if (value := metric(run)) is not None]
        if values:
            table[name] = values
    return table


def _run(record: Mapping[str, Any]) -> Run:
    """Undo ``as_dict`` for one run: the losses that are None were infinite."""
    curve = record["curve"]
    points = zip(*(curve[name] for name in Point._fields), strict=True)
    changed = {
        "curve": tuple(Point(spent, at, _finite(loss), n) for spent, at, loss, n in points),
        "teleports": tuple(Teleport(**t) for t in record["teleports"]),
        "valid_loss": _finite(record["valid_loss"]),
    }
    return Run(**{**record, **changed})


def _finite(loss: float | None) -> float:
    return math.inf if loss is None else loss
