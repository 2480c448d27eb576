"""Running a grid: each run is a line of JSON, and a line that is there is not run again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nullport.lab.backends import load_backend
from nullport.lab.compare import Run, check, load_task
from nullport.lab.compare.records import Point
from nullport.lab.compare.results import plain
from nullport.lab.compare.task import Task
from nullport.lab.compare.training import Training
from nullport.lab.compare.versions import versions
from nullport.lab.suite import barrier, sensitivity, tuning
from nullport.lab.suite.barrier import Pairs
from nullport.lab.suite.grid import Grid, Job, plain_settings

Record = dict[str, Any]
Work = Job | Pairs
"""What makes one record."""

Progress = Callable[[str, int, int, Record | None], None]
"""Told the stage, how many records of it are there, of how many, and the one just made."""

POINTS = 8
"""Evaluations of the training loss during a run: for a small network they cost as much as it."""

SAMPLE = 4
"""Evaluations take one sample in so many of those that a comparison takes."""


def read(path: Path) -> list[Record]:
    """Return the records of a file, none if it is not there.

    Raises:
        ValueError: If a line is no record; the message names it.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text("utf-8").split("\n")  # a line that was cut off is none
    return [_parsed(line, f"line {i} of {path.name}") for i, line in enumerate(lines, 1) if line]


def _parsed(line: str, where: str) -> Record:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        msg = f"invalid record: {where}: {error}; allowed: what nullport suite wrote"
        raise ValueError(msg) from error


def run_grid(grid: Grid, path: Path, **given: Any) -> None:
    """Make every run of a grid whose record is not yet in the file: trials first, then results.

    Args:
        grid: The grid.
        path: File of records, made if it is not there.
        given: As for :func:`run`.

    Raises:
        ValueError: If the settings do not fit the task or the backend.
        MissingData: If a dataset is not there.
    """
    if grid.tune is None:
        run(list(grid.jobs()), path, **given)
        return
    run(list(tuning.trials(grid)), path, stage="tuning", **given)
    run(list(results(grid, read(path))), path, stage="results", **given)


def results(grid: Grid, records: Sequence[Mapping[str, Any]]) -> Iterator[Work]:
    """Yield what is run once rates are tuned: results, sensitivity, connectivity."""
    assert grid.tune is not None
    found = tuning.choices(grid, {record["key"]: record for record in records})
    yield from (job for choice in found for job in choice.jobs())
    if grid.sensitivity is not None:
        yield from sensitivity.jobs(found, grid.sensitivity, grid.varied)
    if grid.connectivity is not None:
        yield from barrier.pairs(found, grid.connectivity)


def run(
    work: Sequence[Work],
    path: Path,
    *,
    backend: str = "torch",
    data: str | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    stage: str = "runs",
) -> None:
    """Make every record that is not yet in the file, and append it.

    Args:
        work: What makes the records.
        path: File of records, made if it is not there.
        backend: Name of the backend.
        data: Folder of the datasets.
        processes: Runs made at a time.
        progress: Told of every record.
        stage: What these runs are for.

    Raises:
        ValueError: If the settings do not fit the task or the backend, or the file holds anything
            but records.
        MissingData: If a dataset is not there.
    """
    for s in dict.fromkeys(item.settings for item in work):
        check(s, _task(s.task, data), load_backend(backend))
    there = {record["key"] for record in read(path)}
    total = len({item.key for item in work})
    waiting = {item.key: item for item in work if item.key not in there}
    tell = progress or (lambda *_: None)
    tell(stage, total - len(waiting), total, None)
    _cut(path)
    with path.open("a", encoding="utf-8") as file:
        for done, record in enumerate(_records(list(waiting.values()), backend, data, processes)):
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            tell(stage, total - len(waiting) + done + 1, total, record)


def _cut(path: Path) -> None:
    """Drop a last line whose writing was interrupted; its run is made again."""
    if path.exists():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])


def _records(work: list[Work], backend: str, data: str | None, processes: int) -> Iterator[Record]:
    if processes == 1:
        yield from (_record(item, backend, data) for item in work)
        return
    # Spawned, not forked: frameworks do not survive a fork with threads.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_record, item, backend, data) for item in work]):
            yield future.result()


@lru_cache
def _task(name: str, data: str | None) -> Task:
    return load_task(name, data)


def _record(job: Work, backend: str, data: str | None) -> Record:
    """Make one record."""
    adapter = load_backend(backend)
    assert adapter.trainer is not None  # checked
    task = _task(job.settings.task, data)
    if isinstance(job, Pairs):
        return barrier.measure(job, task, adapter)
    try:
        trainer = adapter.trainer(task, job.settings, job.seed)
        training = Training(job.arm, job.seed, trainer, task, job.settings, None, POINTS)
        training.watch, training.sample = True, SAMPLE
        outcome = training.run()
    except ValueError as error:  # of a grid, nobody knows which run it was
        msg = f"{job.method} on {task.name}, {job.settings.model}: {error}"
        raise ValueError(msg) from error
    return {
        "key": job.key,
        "settings": plain_settings(job.settings),
        "seed": job.seed,
        "versions": dict(versions(adapter)),
        **summary(outcome),
    }


def summary(outcome: Run) -> Record:
    """Return what is kept of a run; losses that are not finite are None."""
    record = {
        "final_loss": outcome.final_loss,
        "valid_loss": outcome.valid_loss,
        "accuracy": outcome.accuracy,
        "area": outcome.area,
        "finite": math.isfinite(outcome.final_loss),
        "steps": outcome.steps,
        "spent": outcome.spent,
        "seconds": outcome.seconds,
        "accepted": outcome.accepted,
        "refused": outcome.refused,
        "teleport_cost": sum(teleport.cost for teleport in outcome.teleports),
        "teleport_seconds": sum(float(t.report["seconds"]) for t in outcome.teleports),
        "teleport_steps": [teleport.step for teleport in outcome.teleports],
        "drift": [t.drift for t in outcome.teleports if t.report["accepted"]],
        "curve": {name: [getattr(p, name) for p in outcome.curve] for name in Point._fields},
    }
    return {name: plain(value) for name, value in record.items()}
