"""Pictures of a tuned grid: the change that every method makes in every cell, and curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nullport.lab import figures, output
from nullport.lab.figures import Style
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuned import AXES, Comparison, Record

LABELS = {"spent": "compute, in gradients of a batch", "step": "steps", "seconds": "seconds"}
MOST = 0.6
"""Largest change drawn; one beyond it is an arrow at the edge."""

SAYS = (
    "point: median over seeds; line: its 95 % bootstrap interval; "
    f"arrow: a change beyond {100 * MOST:.0f} %"
)


def draw(found: Sequence[Comparison], page: Path) -> dict[str, Path]:
    """Draw into PNG files named after the page, and return their paths by what they show.

    Raises:
        MissingExtra: If matplotlib is not installed.
        OSError: If a file cannot be written.
    """
    if not found:
        return {}
    drawn = {"changes": _changes(found), "curves": _curves(found)}
    paths = {name: page.with_name(f"{page.stem}-{name}.png") for name in drawn}
    for name, figure in drawn.items():
        output.save(figure, paths[name])
    return paths


def _styles(found: Sequence[Comparison]) -> dict[str, Style]:
    """Return a style for every method, in the order of the grid."""
    return figures.styles(dict.fromkeys(c.method for c in found))


def _changes(found: Sequence[Comparison]) -> Any:
    """Draw a line per cell: median and interval over seeds of every method's change."""
    names = list(dict.fromkeys(c.name for c in found))
    methods = _styles(found)
    figure = figures.new(9, 2 + 0.21 * len(names) + 0.2 * math.ceil(len(methods) / 4))
    axes = figure.subplots()
    for k, (method, style) in enumerate(methods.items()):
        mine = [c for c in found if c.method == method]
        y = [names.index(c.name) + 0.7 * (k / max(len(methods) - 1, 1) - 0.5) for c in mine]
        _points(axes, mine, y, style, method)
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set_yticks(range(len(names)), [", ".join(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("change of the training loss at equal compute (left is better)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.0f} %")
    axes.grid(axis="x", alpha=0.3)
    figures.legend(figure, [axes], SAYS)
    return figure


def _points(
    axes: Any, mine: Sequence[Comparison], y: Sequence[float], style: Style, label: str
) -> None:
    """Draw the changes of one method at these heights, cut at the edges."""
    ends = [interval(c.changes["spent"]) for c in mine]
    lows, highs = (np.clip([end[i] for end in ends], -MOST, MOST) for i in (0, 1))
    axes.hlines(y, lows, highs, color=style.colour, lw=1)
    for shape, inside in ((style.shape, 0), ("<", -1), (">", 1)):
        part = [(c.change, at) for c, at in zip(mine, y, strict=True) if _side(c) == inside]
        x, heights = zip(*part, strict=True) if part else ((), ())
        named = label if shape == style.shape else None
        x = np.clip(x, -MOST, MOST)
        axes.plot(x, heights, shape, color=style.colour, ms=4, label=named)


def _side(c: Comparison) -> int:
    """Return -1 or 1 where a change is beyond the left or right edge, else 0."""
    return int(c.change > MOST) - int(c.change < -MOST)


def _curves(found: Sequence[Comparison]) -> Any:
    """Draw training loss against each axis, for the first cell of every task."""
    firsts: dict[str, list[Comparison]] = {}
    for c in found:
        task = c.name[0].partition(",")[0]
        mine = firsts.setdefault(task, [])
        if not mine or mine[0].name == c.name:
            mine.append(c)
    styles = _styles(found)
    figure = figures.new(10, 1 + 2.6 * len(firsts))
    panels = figure.subplots(len(firsts), len(AXES), squeeze=False, sharey="row")
    for row, mine in zip(panels, firsts.values(), strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            base = Style(figures.GREY, "-", "o")
            _line(axes, mine[0].base_runs, axis, base, "without teleports")
            for c in mine:
                _line(axes, c.runs, axis, styles[c.method], c.method)
            axes.set_xlabel(LABELS[axis], fontsize=8)
            axes.grid(alpha=0.3)
        figures.log_where_wide(row[0])
        row[0].set_ylabel("training loss", fontsize=8)
        row[0].set_title(", ".join(mine[0].name), fontsize=9, loc="left")
    seeds = {len(c.base_runs) for mine in firsts.values() for c in mine}
    counts = " or ".join(map(str, sorted(seeds)))
    figures.legend(figure, panels.flat, f"line: median of {counts} seeds, tuned rates")
    return figure


def _line(axes: Any, runs: Sequence[Record], axis: str, style: Style, label: str) -> None:
    """Draw the median over seeds at the evaluations that all have, and mark the teleports."""
    count = min(len(run["curve"]["loss"]) for run in runs)
    points = range(count)
    x = [median(run["curve"][axis][i] for run in runs) for i in points]
    y = [median(_finite(run["curve"]["loss"][i]) for run in runs) for i in points]
    axes.plot(x, y, color=style.colour, ls=style.dash, label=label, lw=1.2)
    steps = [median(run["curve"]["step"][i] for run in runs) for i in points]
    figures.mark(axes, _teleports(runs, steps, x, y), style.colour)


def _teleports(
    runs: Sequence[Record], steps: Sequence[float], x: Sequence[float], y: Sequence[float]
) -> Iterator[tuple[float, float, bool]]:
    """Yield where teleports are on a curve; older records do not say which of them were kept."""
    for run in runs:
        kept = run.get("teleport_kept", ())
        for step, flag in zip(run.get("teleport_steps", ()), kept, strict=False):
            at, loss = (float(np.interp(step, steps, values)) for values in (x, y))
            yield at, loss, bool(flag)


def _finite(value: float | None) -> float:
    return math.inf if value is None else value
