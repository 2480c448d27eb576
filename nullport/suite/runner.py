"""Running a grid: each run is a line of JSON, and a line that is there is not run again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nullport._backends import load_backend
from nullport.compare import Run, check, load_task
from nullport.compare.results import plain
from nullport.compare.task import Task
from nullport.compare.training import Training
from nullport.compare.versions import versions
from nullport.suite.grid import BASELINE, Job, plain_settings

Record = dict[str, Any]

POINTS = 4
"""Evaluations of the training loss during a run: for a small network they cost as much as it."""


def read(path: Path) -> list[Record]:
    """Return the records of a file, none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def run(
    jobs: Sequence[Job],
    path: Path,
    *,
    backend: str = "torch",
    data: str | None = None,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make every run whose record is not yet in the file, and append it.

    Args:
        jobs: The runs.
        path: File of records, made if it is not there.
        backend: Name of the backend.
        data: Folder of the datasets.
        processes: Runs made at a time.
        progress: Told how many runs are there, and of how many.

    Raises:
        ValueError: If the settings do not fit the task or the backend.
        MissingData: If a dataset is not there.
    """
    for job in {job.settings.task: job for job in jobs}.values():
        check(job.settings, _task(job.settings.task, data), load_backend(backend))
    there = {record["key"] for record in read(path)}
    total = len({job.key for job in jobs})
    waiting = {job.key: job for job in jobs if job.key not in there}
    tell = progress or (lambda *_: None)
    tell(total - len(waiting), total)
    with path.open("a", encoding="utf-8") as file:
        for done, record in enumerate(_records(list(waiting.values()), backend, data, processes)):
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            tell(total - len(waiting) + done + 1, total)


def _records(jobs: list[Job], backend: str, data: str | None, processes: int) -> Iterator[Record]:
    if processes == 1:
        yield from (_record(job, backend, data) for job in jobs)
        return
    # Spawned, not forked: frameworks do not survive a fork with threads.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_record, job, backend, data) for job in jobs]):
            yield future.result()


@lru_cache
def _task(name: str, data: str | None) -> Task:
    return load_task(name, data)


def _record(job: Job, backend: str, data: str | None) -> Record:
    """Make one run."""
    adapter = load_backend(backend)
    assert adapter.trainer is not None  # checked
    task = _task(job.settings.task, data)
    arm = BASELINE if job.method == BASELINE else "teleport"
    trainer = adapter.trainer(task, job.settings, job.seed)
    outcome = Training(arm, job.seed, trainer, task, job.settings, None, POINTS).run()
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
    }
    return {name: plain(value) for name, value in record.items()}
