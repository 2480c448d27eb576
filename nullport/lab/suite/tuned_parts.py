"""The parts of the page on sensitivity and on linear mode connectivity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from nullport.lab.suite import barrier, sensitivity
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.markdown import percent, table
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.tuned import Comparison, compared, name_of
from nullport.lab.suite.tuning import Choice, Records, choices


def parts(grid: Grid, known: Records) -> Iterator[str]:
    """Yield headings and texts of what the grid declares and has records of."""
    found = choices(grid, known)
    if grid.connectivity is not None:
        yield "## Barriers between solutions"
        yield _connectivity(found, grid.connectivity, known)
    if grid.sensitivity is not None:
        yield "## Sensitivity"
        yield _sensitivity(found, grid.sensitivity, grid.varied, known)


def _connectivity(found: Sequence[Choice], section: Mapping[str, Any], known: Records) -> str:
    rows = []
    for choice in found:
        mine = list(barrier.pairs([choice, *_others(found, choice)], section))
        records = [known[p.key] for p in mine if p.key in known]
        for name in records[0]["barrier"] if records else ():
            barriers = [r["barrier"][name] for r in records if r["barrier"][name] is not None]
            distances = [r["distance"][name] for r in records if r["distance"][name] is not None]
            if barriers:
                losses = [r["final_loss"] for r in records if r["final_loss"] is not None]
                rows.append(
                    [
                        ", ".join(name_of(choice)),
                        name,
                        f"{median(losses):.3g}",
                        f"{median(barriers):.3g} ({min(barriers):.3g} … {max(barriers):.3g})",
                        f"{median(distances):.2f}",
                    ]
                )
    head = ["cell", "between no teleports and", "loss there", "barrier (range over seeds)"]
    text = (
        "The largest rise of the training loss on the straight line between the solution without "
        "teleports and the other, above the line between their losses; same initial weights, "
        "batches and rate, except for the last of a cell, another seed without teleports. The "
        "distance is relative to the norm of the weights.\n\n"
    )
    return text + table([*head, "distance"], rows)


def _others(found: Sequence[Choice], choice: Choice) -> list[Choice]:
    return [c for c in found if c.cell is choice.cell and c.method != BASELINE]


def _sensitivity(
    found: Sequence[Choice], section: Mapping[str, Any], method: str, known: Records
) -> str:
    changes: dict[str, dict[str, Comparison]] = {}
    cells: dict[str, None] = {}
    for choice in (c for c in found if c.method == method):
        base = next(c for c in found if c.cell is choice.cell and c.method == BASELINE)
        jobs = list(sensitivity.jobs([choice], section, method))
        if not jobs:
            continue
        cell = ", ".join(name_of(choice))
        cells[cell] = None
        seeds = {job.seed for job in jobs}
        jobs += [Job(f"{method}, as it is", choice.settings, seed) for seed in sorted(seeds)]
        for name in dict.fromkeys(job.method for job in jobs):
            made = _compared([job for job in jobs if job.method == name], choice, base, known)
            if made is not None:
                changes.setdefault(name, {})[cell] = made
    last = f"{method}, as it is"
    names = [last, *(name for name in changes if name != last)]
    rows = [
        [name, *(_text(changes[name].get(c)) for c in cells)] for name in names if name in changes
    ]
    text = (
        f"One field of {method}'s `TeleportConfig` at a time, at the rate tuned for {method}: the "
        "change of the training loss against no teleports (range over seeds), and teleports "
        "accepted / refused per run.\n\n"
    )
    return text + table(["changed", *cells], rows)


def _compared(
    jobs: Sequence[Job], choice: Choice, base: Choice, known: Records
) -> Comparison | None:
    theirs = {job.seed: known[job.key] for job in base.jobs() if job.key in known}
    pairs = [
        (known[job.key], theirs[job.seed])
        for job in jobs
        if job.key in known and job.seed in theirs and theirs[job.seed]["finite"]
    ]
    if not pairs:
        return None
    mine, others = zip(*pairs, strict=True)
    return compared(choice, base, mine, others)


def _text(c: Comparison | None) -> str:
    if c is None:
        return ""
    changes = c.changes["spent"]
    accepted, refused = (
        sum(run[name] for run in c.runs) / len(c.runs) for name in ("accepted", "refused")
    )
    span = f"{percent(min(changes))} … {percent(max(changes))}"
    return f"{percent(c.change)} ({span}), {accepted:.1f} / {refused:.1f}"
