"""The page of a tuned grid: every method at its own best rate, against no teleports at theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from nullport.lab.suite import arms, tuned_parts
from nullport.lab.suite.grid import Grid
from nullport.lab.suite.markdown import median_text, percent, table
from nullport.lab.suite.runner import results
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuned import AXES, Comparison, comparisons, name_of
from nullport.lab.suite.tuning import Choice, Records, choices, loss, trials
from nullport.lab.suite.words import sentence

OWN_RATE = """\
Every method has its own learning rate: the one of the same {rates} rates with the lowest training \
loss at the end of a run on {trials} seed{s} that no result uses."""

SAME_RATE = "All methods of a cell have the same learning rate, given in the last table."

EXPLAINED = """\
{rated} A change is of a loss, relative \
to the run without teleports from the same initial weights, on the same batches, of the same \
compute; negative is better. Compute is counted in gradients of a training batch, and teleports \
are charged for theirs. A cell's change is the median over {seeds} seeds; brackets hold 95 % \
bootstrap intervals of a median, over seeds for a cell and over cells for several. *Better* and \
*worse* count the cells whose interval leaves out 0.

At equal steps and at equal seconds the two are compared where the shorter ends. A schedule that \
ends with the compute has come further by then in the run that spends more per step; with a \
constant rate that is no matter."""


def page(grid: Grid, records: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> str:
    """Return the page; ``shown`` has the files of pictures by what they show."""
    wanted = {item.key for item in (*trials(grid), *results(grid, records))}
    known = {record["key"]: record for record in records if record["key"] in wanted}
    found = comparisons(grid, known)
    if not found:
        return "No cell has all its runs yet.\n"
    tuned = any(job for job in trials(grid))
    title = "# Every method at its own best rate" if tuned else "# Every method at the same rate"
    parts = [title, _head(grid, known), _explained(grid, found)]
    parts += ["## Methods", _notes(grid), _words(found), _methods(found)]
    parts += arms.parts(grid, known)
    schedules = list(dict.fromkeys(c.name[2] for c in found))
    if len(schedules) > 1:
        for schedule in schedules:
            mine = [c for c in found if c.name[2] == schedule]
            parts += [f"### {schedule} rate", _methods(mine)]
    if "changes" in shown:
        parts.append(f"![Change of the training loss in every cell]({shown['changes']})")
    parts += ["## By task and optimizer", *_matrices(found)]
    if "curves" in shown:
        parts.append(f"![Training loss against compute, steps and seconds]({shown['curves']})")
    parts += ["## Other samples' loss in a teleport", _drift(found)]
    parts += tuned_parts.parts(grid, known)
    parts += ["## Rates and losses", _rates(choices(grid, known), known)]
    return "\n\n".join(parts) + "\n"


def _head(grid: Grid, known: Records) -> str:
    runs = [record for record in known.values() if "seconds" in record]
    seconds = sum(record["seconds"] for record in runs)
    taken = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    named = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    tried = len({job.key for job in trials(grid)})
    return (
        f"{len(known)} records ({tried} of them trials of rates) in {len(grid.cells)} cells; steps "
        f"and teleports took {taken} of one core, evaluations not counted. {named}, "
        f"{os.cpu_count()} processors."
    )


def _explained(grid: Grid, found: Sequence[Comparison]) -> str:
    assert grid.tune is not None
    count = int(grid.tune.get("seeds", 1))
    rates = sorted({len(c["lr"]) for c in grid.cells if isinstance(c.get("lr"), list)})
    seeds = sorted({c.choice.settings.seeds for c in found})
    own = OWN_RATE.format(rates=" or ".join(map(str, rates)), trials=count, s="s" * (count > 1))
    rated = own if any(rate > 1 for rate in rates) else SAME_RATE
    return EXPLAINED.format(rated=rated, seeds=" or ".join(map(str, seeds)))


def _notes(grid: Grid) -> str:
    lines = [f"- **{name}**: {entry.get('note', '')}" for name, entry in grid.methods.items()]
    return "\n".join(lines)


def _words(found: Sequence[Comparison]) -> str:
    """Return a sentence per method."""
    lines = []
    for method in dict.fromkeys(c.method for c in found):
        mine = [c for c in found if c.method == method]
        verdicts = [c.verdict for c in mine]
        changes = [c.change for c in mine]
        lines.append(sentence(method, changes, verdicts.count(-1), verdicts.count(1)))
    return "\n".join(f"- {line}" for line in lines)


def _methods(found: Sequence[Comparison]) -> str:
    rows = []
    for method in dict.fromkeys(c.method for c in found):
        mine = [c for c in found if c.method == method]
        verdicts = [c.verdict for c in mine]
        rows.append(
            [
                method,
                str(len(mine)),
                *(median_text([median(c.changes[axis]) for c in mine]) for axis in AXES),
                median_text([median(c.valid) for c in mine]),
                f"{verdicts.count(-1)} / {verdicts.count(1)}",
                _per_run(mine),
                f"{100 * median(c.share for c in mine):.1f} %",
                percent(median(c.slower for c in mine)),
            ]
        )
    head = ["method", "cells", *(f"train loss, {label}" for label in AXES.values())]
    head += [
        "validation loss",
        "better / worse",
        "accepted / refused",
        "compute",
        "seconds per unit",
    ]
    return table(head, rows)


def _per_run(mine: Sequence[Comparison]) -> str:
    runs = [run for c in mine for run in c.runs]
    accepted, refused = (np.mean([run[name] for run in runs]) for name in ("accepted", "refused"))
    return f"{accepted:.1f} / {refused:.1f}"


def _matrices(found: Sequence[Comparison]) -> Iterator[str]:
    """Yield a table per method: tasks by optimizers, bold where the interval leaves out 0."""
    optimizers = list(dict.fromkeys(c.name[1] for c in found))
    for method in dict.fromkeys(c.method for c in found):
        mine = {c.name: c for c in found if c.method == method}
        rows = []
        for task, schedule in dict.fromkeys((name[0], name[2]) for name in mine):
            cells = [mine.get((task, optimizer, schedule)) for optimizer in optimizers]
            rows.append([task, schedule, *("" if c is None else _cell(c) for c in cells)])
        yield f"**{method}**: change of the training loss at equal compute"
        yield table(["task", "schedule", *optimizers], rows)


def _cell(c: Comparison) -> str:
    low, high = interval(c.changes["spent"])
    text = f"{percent(c.change)} [{percent(low)}, {percent(high)}]"
    return f"**{text}**" if c.verdict else text


def _drift(found: Sequence[Comparison]) -> str:
    """Return the change of the validation loss in accepted teleports, by method and task."""
    rows = []
    for method in dict.fromkeys(c.method for c in found):
        for task in dict.fromkeys(c.name[0] for c in found if c.method == method):
            mine = [c for c in found if c.method == method and c.name[0] == task]
            drifts = sorted(d for c in mine for d in c.drifts)
            if any(drifts):
                high = drifts[min(int(0.9 * len(drifts)), len(drifts) - 1)]
                texts = map(percent, (drifts[0], median(drifts), high, drifts[-1]))
                rows.append([method, task, str(len(drifts)), *texts])
    text = (
        "The validation loss just after an accepted teleport, relative to that just before: "
        "samples that no teleport has seen. Where nothing ever moved there is no row.\n\n"
    )
    return text + table(
        ["method", "task", "teleports", "lowest", "median", "90 %", "highest"], rows
    )


def _rates(found: Sequence[Choice], known: Records) -> str:
    """Return the loss without teleports and every method's rate; edges of the rates are marked."""
    methods = list(dict.fromkeys(c.method for c in found))
    rows = []
    for cell in {id(c.cell): c.cell for c in found}.values():
        mine = {c.method: c for c in found if c.cell is cell}
        if BASELINE not in mine:
            continue
        runs = [known[job.key] for job in mine[BASELINE].jobs() if job.key in known]
        losses = [[loss(run, name) for run in runs] for name in ("final_loss", "valid_loss")]
        texts = [_range(values) if values else "" for values in losses]
        rates = [_rate(mine[m]) if m in mine else "" for m in methods]
        rows.append([", ".join(name_of(mine[BASELINE])), *texts, *rates])
    text = (
        "Median losses without teleports (range over seeds), and the rate of every method; "
        "\\* marks the lowest or highest rate tried.\n\n"
    )
    return text + table(["cell", "train loss", "validation loss", *methods], rows)


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.4g} ({min(values):.4g} … {max(values):.4g})"


def _rate(choice: Choice) -> str:
    return f"{choice.settings.lr:g}" + r"\*" * choice.edge
