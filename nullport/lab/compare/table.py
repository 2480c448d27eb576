"""The comparison as a table: a line per metric, a column per arm, and the difference."""

from __future__ import annotations

import math
from typing import Any

from nullport.lab.compare.extras import require
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


def table(results: Results) -> Any:
    """Return a ``rich`` table of mean and standard deviation over seeds.

    Raises:
        MissingExtra: If rich is not installed.
    """
    settings = results.settings
    title = (
        f"{settings.task}, {settings.model} {settings.width} x {settings.depth}, "
        f"{settings.optimizer} {settings.lr:g}: {settings.budget} gradients of {settings.batch} "
        f"samples, {settings.seeds} seed{'s' * (settings.seeds > 1)}"
    )
    sheet = require("rich.table").Table(title=title, caption="mean ± standard deviation over seeds")
    summary = results.summary()
    sheet.add_column("", no_wrap=True)
    for column in summary:
        sheet.add_column(column, justify="right")
    for name, heading in TITLES.items():
        if name in summary["baseline"]:
            sheet.add_row(heading, *(_cell(column[name]) for column in summary.values()))
    return sheet


def _cell(value: Statistic) -> str:
    """Write a statistic to the second digit of its deviation.

    >>> _cell(Statistic(0.123456, 0.0123))
    '0.123 ± 0.012'
    """
    mean, std = value
    if math.isnan(mean):
        return "diverged"
    if std <= 1e-6 * abs(mean):
        return f"{mean:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"
