"""The parts of the page that set teleports beside other initialisations: final losses, arm by arm.

An arm is a method on a cell at its own best rate. Ratios are of training losses at the end, of the
same seed; where an initialisation differs, so do the first weights, and the batches are the same.
The time to a loss is where the logarithm of the loss, interpolated between evaluations, first falls
to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from nullport.lab.compare.settings import NONE
from nullport.lab.suite.grid import Grid
from nullport.lab.suite.markdown import table
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuned import name_of
from nullport.lab.suite.tuning import Choice, Records, choices, loss

Runs = Mapping[int, Mapping[str, Any]]
"""Records of an arm by seed."""

SLACK = 1.1
"""The loss that times are measured to, in units of the baseline's last."""

RATIOS = f"""\
Ratios of training losses at the end, median over seeds [95 % bootstrap interval]; below 1 is \
better. The best initialisation is the one without teleports whose median loss is lowest. The \
last columns: when the training loss first is at most {SLACK:g} times the last one of no \
teleports, as a share of the compute (the seconds) of that run, median over seeds; *at start* \
where no teleports end so near to where they start, *never* where it is not reached."""


def parts(grid: Grid, known: Records) -> Iterator[str]:
    """Yield headings and tables, where the grid has arms without teleports to compare with."""
    if all(entry.get("method") != NONE for entry in grid.methods.values()):
        return
    cells = list(_cells(choices(grid, known), known))
    yield "## Final losses"
    yield "Training loss at the end, median over seeds (range)."
    yield _losses(cells, [BASELINE, *grid.methods])
    yield "## Beside no teleports and other initialisations"
    yield RATIOS
    for name, entry in grid.methods.items():
        if entry.get("method") != NONE and (rows := list(_ratios(cells, name))):
            yield f"**{name}**"
            yield table(HEAD, rows)


HEAD = [
    "cell",
    "ratio to none",
    "best initialisation",
    "ratio to it",
    "compute to that loss",
    "the same, best initialisation",
    "seconds to that loss",
]


def _cells(found: Sequence[Choice], known: Records) -> Iterator[tuple[str, dict[str, Choice], Any]]:
    """Yield the name of each cell with its choices and its runs by method."""
    for cell in {id(c.cell): c.cell for c in found}.values():
        mine = {c.method: c for c in found if c.cell is cell}
        runs = {name: _runs(c, known) for name, c in mine.items()}
        runs = {name: seeds for name, seeds in runs.items() if seeds}
        if BASELINE in runs:
            yield ", ".join(name_of(mine[BASELINE])[:2]), mine, runs


def _runs(choice: Choice, known: Records) -> Runs:
    return {job.seed: known[job.key] for job in choice.jobs() if job.key in known}


def _losses(cells: Sequence[Any], methods: Sequence[str]) -> str:
    rows = []
    for name, _, runs in cells:
        values = [[loss(run) for run in runs.get(m, {}).values()] for m in methods]
        rows.append([name, str(len(runs[BASELINE])), *map(_range, values)])
    return table(["cell", "seeds", "none", *methods[1:]], rows)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{median(values):.3g} ({min(values):.3g} … {max(values):.3g})"


def _ratios(cells: Sequence[Any], method: str) -> Iterator[list[str]]:
    for name, chosen, runs in cells:
        if method not in runs:
            continue
        base, mine = runs[BASELINE], runs[method]
        row = [name, ratio(mine, base)]
        rivals = [m for m in runs if chosen[m].settings.method == NONE]
        best = min(rivals, key=lambda m: median(map(loss, runs[m].values())), default=None)
        row += ["", ""] if best is None else [best, ratio(mine, runs[best])]
        row.append(when(mine, base, "spent"))
        row.append("" if best is None else when(runs[best], base, "spent"))
        yield [*row, when(mine, base, "seconds")]


def ratio(mine: Runs, base: Runs) -> str:
    """Return the median ratio of last losses over the seeds that both have, with its interval."""
    shared = sorted(mine.keys() & base.keys())
    if not shared:
        return ""
    ratios = [_ratio(loss(mine[seed]), loss(base[seed])) for seed in shared]
    low, high = interval(ratios)
    return f"{median(ratios):.3g} [{low:.3g}, {high:.3g}]"


def _ratio(a: float, b: float) -> float:
    if b == 0 or not math.isfinite(b):
        return 1.0 if a == b else math.inf if b == 0 else 0.0
    return a / b


def when(mine: Runs, base: Runs, axis: str) -> str:
    """Return when a loss near the baseline's last is reached, as a share of its run."""
    shares = []
    for seed in sorted(mine.keys() & base.keys()):
        curve, last = base[seed]["curve"], loss(base[seed])
        if SLACK * last >= float(curve["loss"][0] or math.inf):
            return "at start"
        reached = reaches(mine[seed]["curve"], SLACK * last, axis)
        shares.append(reached / max(curve[axis][-1], 1e-12))
    middle = median(shares) if shares else math.inf
    return f"{middle:.2g}" if math.isfinite(middle) else "never"


def reaches(curve: Mapping[str, Sequence[Any]], target: float, axis: str) -> float:
    """Return where a curve first is at most ``target``, infinite where it never is.

    >>> reaches({"spent": [0, 10], "loss": [4.0, 1.0]}, 2.0, "spent")
    5.0
    """
    before = None
    for place, value in zip(curve[axis], curve["loss"], strict=True):
        now = math.inf if value is None else max(float(value), 1e-300)
        if now <= target:
            if before is None or not math.isfinite(before[1]):
                return float(place)
            share = math.log(before[1] / target) / math.log(before[1] / now)
            return float(before[0] + share * (place - before[0]))
        before = (place, now)
    return math.inf
