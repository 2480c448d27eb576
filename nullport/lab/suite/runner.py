"""Making the runs of a grid whose records are not yet in the store."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
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
from nullport.lab.suite.store import Record, Store
from nullport.lab.suite.workers import Lost, Workers, workers

Work = Job | Pairs
"""What makes one record."""

Progress = Callable[[str, int, int, Record | None], None]
"""Told the stage, how many records of it are there, of how many, and the one just made."""

POINTS = 8
"""Evaluations of the training loss during a run: for a small network they cost as much as it."""

SAMPLE = 4
"""Evaluations take one sample in so many of those that a comparison takes."""

LOOK = 1.0
"""Seconds after which to look again for what other suites have made or given back."""

TRIES = 3
"""Times that a run may take the process that makes it along."""


def run_grid(grid: Grid, path: Path, **given: Any) -> None:
    """Make every run of a grid whose record is not yet in the store: trials first, then results.

    Args:
        grid: The grid.
        path: File of the store, made if it is not there.
        given: As for :func:`run`.

    Raises:
        ValueError: If the settings do not fit the task or the backend.
        MissingData: If a dataset is not there.
        OSError: If the store cannot be written, or a run ends the process that makes it.
    """
    with _opened(path, **given) as runner:
        if grid.tune is None:
            runner.make(list(grid.jobs()))
            return
        runner.make(list(tuning.trials(grid)), "tuning")
        runner.make(list(results(grid, runner.store.records())), "results")


def results(grid: Grid, records: Sequence[Mapping[str, Any]]) -> Iterator[Work]:
    """Yield what is run once rates are tuned: results, sensitivity, connectivity."""
    assert grid.tune is not None
    found = tuning.choices(grid, {record["key"]: record for record in records})
    yield from (job for choice in found for job in choice.jobs())
    if grid.sensitivity is not None:
        yield from sensitivity.jobs(found, grid.sensitivity, grid.varied)
    if grid.connectivity is not None:
        yield from barrier.pairs(found, grid.connectivity)


def run(work: Sequence[Work], path: Path, **given: Any) -> None:
    """Make every record that is not yet in the store.

    Args:
        work: What makes the records.
        path: File of the store, made if it is not there.
        given: ``backend`` (its name), ``data`` (folder of the datasets), ``processes`` (runs made
            at a time on this machine), ``scheduler`` (address of a Dask cluster that makes them
            instead), ``progress`` (told of every record).

    Raises:
        ValueError: As :func:`run_grid`.
        MissingData: If a dataset is not there.
        OSError: As :func:`run_grid`.
    """
    with _opened(path, **given) as runner:
        runner.make(work)


@contextmanager
def _opened(
    path: Path,
    *,
    backend: str = "torch",
    data: str | None = None,
    processes: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Runner]:
    tell = progress or (lambda *_: None)
    with Store(path) as store, store.held(), workers(processes, scheduler) as pool:
        yield Runner(store, pool, backend, data, tell)


@dataclass
class Runner:
    """What makes runs and keeps their records, together with other suites on the same store.

    Attributes:
        store: Where records go.
        pool: What makes them.
        backend: Name of the backend.
        data: Folder of the datasets.
        tell: Told of every record.
        deaths: How often each run took the process that made it along.
    """

    store: Store
    pool: Workers
    backend: str
    data: str | None
    tell: Progress
    deaths: Counter[str] = field(default_factory=Counter)

    def make(self, work: Sequence[Work], stage: str = "runs") -> None:
        """Make every record that is not yet in the store, and wait for those others make."""
        for s in dict.fromkeys(item.settings for item in work):
            check(s, _task(s.task, self.data), load_backend(self.backend))
        waiting = {item.key: item for item in work}
        total, flying = len(waiting), dict[Future[Record], Work]()
        while True:
            known = self.store.keys()
            waiting = {key: item for key, item in waiting.items() if key not in known}
            self.tell(stage, total - len(waiting) - len(flying), total, None)
            if not waiting and not flying:
                return
            for key in self.store.claim(waiting, self.pool.width - len(flying)):
                item = waiting.pop(key)
                flying[self.pool.submit(_record, item, self.backend, self.data)] = item
            for record in self._landed(flying, waiting):
                self.tell(stage, total - len(waiting) - len(flying), total, record)

    def _landed(self, flying: dict[Future[Record], Work], waiting: dict[str, Work]) -> list[Record]:
        """Keep the records that were made meanwhile; what was lost is to be made again."""
        if not flying:  # others are making what is left
            time.sleep(LOOK)
            return []
        done, _ = wait(flying, timeout=LOOK, return_when=FIRST_COMPLETED)
        records = []
        for future in done:
            item = flying.pop(future)
            try:
                records.append(self.pool.result(future))
                self.store.add(records[-1:])
            except Lost as error:
                waiting[item.key] = item
                self._count(item, error)
        return records

    def _count(self, item: Work, error: Lost) -> None:
        self.deaths[item.key] += 1
        if self.deaths[item.key] == TRIES:
            s = item.settings
            msg = f"a run on {s.task}, {s.model} {s.width} x {s.depth}, lost its process {TRIES} "
            raise OSError(msg + f"times (out of memory?): {error}") from error
        self.store.release([item.key])


def _task(name: str, data: str | None) -> Task:
    """Return a task, loaded once; one of the user's own again where its file is another."""
    file = Path(name.rpartition(":")[0]).resolve()
    return _loaded(name, data, (file, file.stat().st_mtime_ns if file.is_file() else None))


@lru_cache
def _loaded(name: str, data: str | None, _: tuple[Path, int | None]) -> Task:
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
    except Exception as error:  # of a grid, nobody knows which run it was
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        if kind and not job.settings.own:
            raise
        msg = f"{job.method} on {task.name}, {job.settings.model}: {kind}{error}"
        raise ValueError(" ".join(msg.split())) from error
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
        "teleport_kept": [bool(t.report["accepted"]) for t in outcome.teleports],
        "drift": [t.drift for t in outcome.teleports if t.report["accepted"]],
        "curve": {name: [getattr(p, name) for p in outcome.curve] for name in Point._fields},
    }
    return {name: plain(value) for name, value in record.items()}
