"""The page of a grid without tuning: methods against no teleports, at every rate by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.markdown import median_text, percent, table
from nullport.lab.suite.statistics import Cell, cells

RATES: dict[str, Callable[[float], bool]] = {
    "1/30 to 1/3 of the tuned rate": lambda rate: 1 / 31 < rate < 1 / 2.9,
    "tuned rate": lambda rate: 0.99 < rate < 1.01,
    "above the tuned rate": lambda rate: rate > 1.01,
}
"""Classes of learning rates, relative to the tuned one."""


def page(grid: Grid, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    jobs = list(grid.jobs())
    known = {record["key"]: record for record in records}
    done = sum(job.key in known for job in jobs)
    parts = [_head(jobs, known, done)]
    found = {name: cells(jobs, known, name) for name in grid.methods}
    first = next(iter(grid.methods))
    parts += ["## " + first, _by_task(found[first])]
    if len(found) > 1:
        parts += ["## Methods", _methods(grid, found)]
    parts += [f"## Cells of {first}", _cells(found[first])]
    return "\n\n".join(parts) + "\n"


def _head(jobs: Sequence[Job], known: Mapping[str, Any], done: int) -> str:
    seconds = sum(known[key]["seconds"] for key in {job.key for job in jobs} & known.keys())
    versions: Mapping[str, str] = next((record["versions"] for record in known.values()), {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{done} of {len(jobs)} runs, {seconds / 60:.0f} minutes of one core. {named}.\n\n"
        "Changes are of the final loss at equal charged compute, relative to the same run without "
        "teleports; negative is better. A cell's change is the median over seeds; brackets hold "
        "the 95 % bootstrap interval of the median over cells. *Worse* counts cells that lose more "
        "than 3 % and more than the baseline's own range over seeds; *broken*, runs that only "
        "diverged with teleports."
    )


def _by_task(found: Sequence[Cell]) -> str:
    rows = []
    groups = dict.fromkeys((c.name[0], c.name[1]) for c in found)
    for task, model in groups:
        mine = [c for c in found if c.name[:2] == (task, model)]
        for init in dict.fromkeys(c.name[3] for c in mine):
            for label, holds in RATES.items():
                part = [c for c in mine if c.name[3] == init and holds(c.rate)]
                if part:
                    rows.append([f"{task}, {model}", init, label, *_summary(part)])
    for label, holds in RATES.items():
        part = [c for c in found if holds(c.rate)]
        if part:
            rows.append(["**all**", "", label, *_summary(part)])
    head = ["task", "init", "learning rate", *SUMMARY]
    return table(head, rows)


SUMMARY = ["cells", "train loss", "validation loss", "worst", "worse", "broken", "share"]


def _summary(part: Sequence[Cell]) -> list[str]:
    return [
        str(len(part)),
        median_text([c.change for c in part]),
        median_text([median(c.valid) for c in part]),
        percent(max(c.change for c in part)),
        str(sum(c.worse for c in part)),
        str(sum(c.broken for c in part)),
        f"{100 * max(c.share for c in part):.1f} %",
    ]


def _methods(grid: Grid, found: Mapping[str, Sequence[Cell]]) -> str:
    """Compare methods on the cells that each shares with the first one."""
    first = next(iter(found))
    index = {(c.name, c.lr): c for c in found[first]}
    rows = []
    for name, mine in found.items():
        for label, holds in RATES.items():
            part = [c for c in mine if holds(c.rate) and (c.name, c.lr) in index]
            if not part:
                continue
            same = [index[c.name, c.lr] for c in part]
            teleports = sum(c.accepted for c in part) / len(part)
            refused = sum(c.refused for c in part) / len(part)
            rows.append(
                [
                    name,
                    str(grid.methods[name].get("note", "")),
                    label,
                    str(len(part)),
                    median_text([c.change for c in part]),
                    median_text([c.change for c in same]),
                    median_text([median(c.valid) for c in part]),
                    percent(max(c.change for c in part)),
                    str(sum(c.broken for c in part)),
                    f"{teleports:.1f} / {refused:.1f}",
                    f"{100 * max(c.share for c in part):.1f} %",
                ]
            )
    head = ["method", "what differs", "learning rate", "cells", "train loss", f"{first} there"]
    head += ["validation loss", "worst", "broken", "accepted / refused", "share"]
    return table(head, rows)


def _cells(found: Sequence[Cell]) -> str:
    rows = [
        [
            f"{c.name[0]}, {c.name[1]}, {c.name[2]}, {c.name[3]}",
            f"{c.lr:g}",
            f"{c.rate:.2g}",
            f"{c.baseline:.4g} ± {50 * c.spread:.1f} %",
            f"{percent(c.change)} ({percent(min(c.train))} … {percent(max(c.train))})",
            percent(median(c.valid)),
            f"{c.accepted:.1f} / {c.refused:.1f}",
            "**worse**" if c.worse else "",
        ]
        for c in found
    ]
    head = ["cell", "rate", "relative to tuned", "baseline", "train loss (range over seeds)"]
    return table([*head, "validation loss", "accepted / refused", ""], rows)
