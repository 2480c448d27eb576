"""Pictures of a tuned grid: the change that every method makes in every cell, and curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.output import save
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuned import AXES, Comparison, Record

LABELS = {"spent": "compute, in gradients of a batch", "step": "steps", "seconds": "seconds"}
COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")
MOST = 0.6
"""Largest change drawn; a longer bar is cut there."""


def draw(found: Sequence[Comparison], page: Path) -> dict[str, Path]:
    """Draw into PNG files named after the page, and return their paths by what they show.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    if not found:
        return {}
    drawn = {"changes": _changes(found), "curves": _curves(found)}
    paths = {name: page.with_name(f"{page.stem}-{name}.png") for name in drawn}
    for name, figure in drawn.items():
        save(figure, paths[name])
    return paths


def _figure(width: float, height: float) -> Any:
    # A figure of its own: pyplot would keep it, and choose a backend for the whole process.
    return require("matplotlib.figure").Figure(
        figsize=(width, height), layout="constrained", dpi=110
    )


def _colours(found: Sequence[Comparison]) -> dict[str, str]:
    """Return a colour for every method, in the order of the grid."""
    return dict(zip(dict.fromkeys(c.method for c in found), itertools.cycle(COLOURS), strict=False))


def _changes(found: Sequence[Comparison]) -> Any:
    """Draw a line per cell: median and interval over seeds of every method's change."""
    names = list(dict.fromkeys(c.name for c in found))
    methods = _colours(found)
    figure = _figure(9, 1.2 + 0.21 * len(names))
    axes = figure.subplots()
    for k, (method, colour) in enumerate(methods.items()):
        mine = [c for c in found if c.method == method]
        y = [names.index(c.name) + 0.7 * (k / max(len(methods) - 1, 1) - 0.5) for c in mine]
        ends = [interval(c.changes["spent"]) for c in mine]
        x = np.clip([c.change for c in mine], -MOST, MOST)
        axes.hlines(
            y,
            np.clip([low for low, _ in ends], -MOST, MOST),
            np.clip([high for _, high in ends], -MOST, MOST),
            color=colour,
            lw=1,
        )
        axes.plot(x, y, ".", color=colour, label=method)
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set_yticks(range(len(names)), [", ".join(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("change of the training loss at equal compute (left is better)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.0f} %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(ncols=len(methods), loc="lower center", bbox_to_anchor=(0.4, 1), fontsize=8)
    return figure


def _curves(found: Sequence[Comparison]) -> Any:
    """Draw training loss against each axis, for the first cell of every task."""
    firsts: dict[str, list[Comparison]] = {}
    for c in found:
        task = c.name[0].partition(",")[0]
        mine = firsts.setdefault(task, [])
        if not mine or mine[0].name == c.name:
            mine.append(c)
    colours = _colours(found)
    figure = _figure(10, 2.6 * len(firsts))
    panels = figure.subplots(len(firsts), len(AXES), squeeze=False, sharey="row")
    for row, mine in zip(panels, firsts.values(), strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            _line(axes, mine[0].base_runs, axis, "0.3", BASELINE)
            for c in mine:
                _line(axes, c.runs, axis, colours[c.method], c.method)
            axes.set_xlabel(LABELS[axis], fontsize=8)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("training loss", fontsize=8)
        row[0].set_title(", ".join(mine[0].name), fontsize=9, loc="left")
        row[-1].legend(fontsize=7)
    return figure


def _line(axes: Any, runs: Sequence[Record], axis: str, colour: str, label: str) -> None:
    """Draw the median over seeds at the evaluations that all have."""
    count = min(len(run["curve"]["loss"]) for run in runs)
    points = range(count)
    x = [median(run["curve"][axis][i] for run in runs) for i in points]
    y = [median(_finite(run["curve"]["loss"][i]) for run in runs) for i in points]
    axes.plot(x, y, color=colour, label=label, lw=1.2)


def _finite(value: float | None) -> float:
    return math.inf if value is None else value
