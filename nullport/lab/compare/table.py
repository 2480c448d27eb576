"""The comparison as a table: a line per metric, a column per arm, and the difference.

Below, where neighbours were run, a line for each with what it ends at, in the column of the
baseline: it is one, with another rate or initialisation.
"""

from __future__ import annotations

import math
from typing import Any

from nullport.lab.compare.advice import advice
from nullport.lab.compare.extras import require
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.results import Results, Statistic

TITLES = {
    "final_loss": "final train loss",
    "area": "area under curve",
    "valid_loss": "validation loss",
    "accuracy": "accuracy",
    "seconds": "seconds",
    "steps": "training steps",
    "accepted": "teleports accepted",
    "refused": "teleports refused",
}
"""Heading of each metric's line."""


BESIDE = ("final_loss", "valid_loss")
"""What is shown of neighbours."""


def table(results: Results) -> Any:
    """Return a ``rich`` table of mean and standard deviation over seeds.

    The caption says whether a rate or an initialisation beats the teleport.

    Raises:
        MissingExtra: If rich is not installed.
    """
    settings = results.settings
    title = (
        f"{settings.task}, {settings.model} {settings.width} x {settings.depth}, "
        f"{settings.optimizer} {settings.lr:g}: {settings.budget} gradients of {settings.batch} "
        f"samples, {settings.seeds} seed{'s' * (settings.seeds > 1)}"
    )
    caption = f"mean ± standard deviation over seeds\n{advice(results)}".strip()
    sheet = require("rich.table").Table(title=title, caption=caption)
    summary = results.summary()
    columns = [name for name in (*ARMS, "difference") if name in summary]
    sheet.add_column("", no_wrap=True)
    for column in columns:
        sheet.add_column(column, justify="right")
    for name, heading in TITLES.items():
        if name in summary["baseline"]:
            sheet.add_row(heading, *(_cell(summary[column][name]) for column in columns))
    for name in BESIDE:
        _add_neighbours(sheet, results, name)
    return sheet


def _add_neighbours(sheet: Any, results: Results, name: str) -> None:
    """Add a section with a line per neighbour: what it ends at, the teleport, the difference."""
    arms, summary = [arm for arm in results.arms() if arm not in ARMS], results.summary()
    if arms:
        sheet.add_section()
        sheet.add_row(TITLES[name])
    for arm in arms:
        cells = (summary[arm][name], summary["teleport"][name], results.difference(arm)[name])
        sheet.add_row(f"  {arm}", *map(_cell, cells))


def _cell(value: Statistic) -> str:
    """Write a statistic to the second digit of its deviation.

    >>> _cell(Statistic(0.123456, 0.0123))
    '0.123 ± 0.012'
    >>> _cell(Statistic(2.3013863, 0.0000082))
    '2.3014 ± 8e-06'
    """
    mean, std = value
    if math.isnan(mean):
        return "diverged"
    if std <= 1e-6 * abs(mean):
        return f"{mean:.4g}"
    if std < 1e-3 * abs(mean):
        return f"{mean:.5g} ± {std:.0e}"
    decimals = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"
