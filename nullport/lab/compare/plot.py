"""The comparison as a picture: training loss against compute, and against seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nullport.lab import figures, output
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.records import Run
from nullport.lab.compare.results import Results
from nullport.lab.compare.task import Array
from nullport.lab.compare.teleports import as_text

AXES = {"spent": "compute spent, in gradients of a batch", "seconds": "seconds"}

NAMES = {"baseline": "without teleports", "teleport": "with teleports"}


def plot(results: Results, path: str | Path) -> None:
    """Draw both panels, per arm the mean over seeds within the range over seeds, into a PNG file.

    Neighbours of the comparison are broken lines. Teleports are marked on the curve, refused ones
    too.

    Raises:
        MissingExtra: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    figure = figures.new(10, 5)
    panels = figure.subplots(1, 2, sharey=True)
    others = [arm for arm in results.arms() if arm not in ARMS]
    styles = {
        ARMS[0]: figures.Style(figures.GREY, "-", "o"),
        ARMS[1]: figures.Style(figures.RED, "-", "o"),
        **figures.styles(others, first=1),
    }
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        for arm in results.arms():
            _draw(axes, arm, results.of(arm), axis, styles[arm])
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figures.log_where_wide(panels[0])
    panels[0].set_ylabel("training loss")
    settings, seeds = results.settings, results.settings.seeds
    says = f"line: mean of {seeds} seeds; band: lowest to highest of them"
    figures.legend(figure, panels, says if seeds > 1 else "one seed")
    figures.title(
        figure,
        f"{settings.task}, {as_text(settings.model)}, {settings.optimizer} {settings.lr:g}, "
        f"{seeds} seed{'s' * (seeds > 1)}",
    )
    output.save(figure, path)


def _draw(axes: Any, arm: str, runs: Sequence[Run], axis: str, style: figures.Style) -> None:
    grid, losses = curves(runs, axis)
    colour, middle = style.colour, losses.mean(axis=0)
    width = 2.0 if arm in ARMS else 1.3
    axes.plot(grid, middle, ls=style.dash, lw=width, color=colour, label=NAMES.get(arm, arm))
    axes.fill_between(grid, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, lw=0)
    figures.mark(axes, _teleports(runs, grid, middle), colour)


def _teleports(
    runs: Sequence[Run], grid: Array, losses: Array
) -> Iterator[tuple[float, float, bool]]:
    """Yield where teleports are on the mean curve, and whether they were kept."""
    ends = min(run.curve[-1].spent for run in runs)
    places = np.linspace(0, ends, len(grid))
    for run in runs:
        for teleport in run.teleports:
            if teleport.spent <= ends:
                x, y = (float(np.interp(teleport.spent, places, a)) for a in (grid, losses))
                yield x, y, bool(teleport.report["accepted"])


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
