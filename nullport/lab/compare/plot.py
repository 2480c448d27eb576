"""The comparison as a picture: training loss against compute, and against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.compare.records import Run
from nullport.lab.compare.results import Results
from nullport.lab.compare.task import Array
from nullport.lab.output import save

COLOURS = {"baseline": "0.35", "teleport": "tab:orange"}
OTHERS = ("tab:blue", "tab:green", "tab:purple", "tab:red")
"""Colours of neighbours, in their order."""

AXES = {"spent": "compute spent, in gradients of a batch", "seconds": "seconds"}


def plot(results: Results, path: str | Path) -> None:
    """Draw both panels, per arm the mean over seeds within the range over seeds, into a PNG file.

    Neighbours of the comparison are broken lines.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    # A figure of its own: pyplot would keep it, and choose a backend for the whole process.
    figure = require("matplotlib.figure").Figure(figsize=(10, 4), layout="constrained", dpi=120)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        others = (arm for arm in results.arms() if arm not in COLOURS)
        colours = {**COLOURS, **dict(zip(others, cycle(OTHERS), strict=False))}
        for arm in results.arms():
            _draw(axes, arm, results.of(arm), axis, colours[arm])
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    if all(point.loss > 0 for run in results.runs for point in run.curve):
        panels[0].set_yscale("log")
    panels[0].set_ylabel("training loss")
    panels[0].legend()
    settings = results.settings
    figure.suptitle(
        f"{settings.task}, {settings.model}, {settings.optimizer} {settings.lr:g}, "
        f"{settings.seeds} seed{'s' * (settings.seeds > 1)}"
    )
    save(figure, path)


def _draw(axes: Any, arm: str, runs: Sequence[Run], axis: str, colour: str) -> None:
    grid, losses = curves(runs, axis)
    label = "with teleports" if arm == "teleport" else arm
    style = "-" if arm in COLOURS else "--"
    axes.plot(grid, losses.mean(axis=0), style, color=colour, label=label)
    axes.fill_between(grid, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, lw=0)


def curves(runs: Sequence[Run], axis: str, points: int = 200) -> tuple[Array, Array]:
    """Interpolate the curves of several runs at equal compute.

    Args:
        runs: The runs.
        axis: ``"spent"`` or ``"seconds"``.
        points: Number of positions, as far as every run goes.

    Returns:
        The positions on the axis, shape (points,), of seconds the median over the runs, which a
        busy machine disturbs least; and the losses there, shape (runs, points), nan where a run
        has diverged.
    """
    grid = np.linspace(0, min(run.curve[-1].spent for run in runs), points)

    def at_grid(run: Run, name: str) -> Array:
        spent = [point.spent for point in run.curve]
        values: Array = np.interp(grid, spent, [getattr(point, name) for point in run.curve])
        return values

    positions: Array = np.median([at_grid(run, axis) for run in runs], axis=0)
    losses = np.array([at_grid(run, "loss") for run in runs])
    return positions, np.where(np.isfinite(losses), losses, np.nan)
