"""The comparison as a table: a line per metric, a column per arm, and the difference.

The difference is in percent and plain words first, then as mean and standard deviation.
Below, where neighbours were run, a line for each with what it ends at, in the column of the
baseline: it is one, with another rate or initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from nullport.lab.compare.advice import advice
from nullport.lab.compare.extras import require
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.results import METRICS, Results, Statistic
from nullport.lab.compare.teleports import as_text

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

LESS_MORE = {
    **dict.fromkeys(("final_loss", "area", "valid_loss"), ("better", "worse")),
    "accuracy": ("worse", "better"),
    "seconds": ("shorter", "longer"),
    "steps": ("fewer", "more"),
}
"""What a smaller and a larger value means, by metric."""

NOTE = (
    "mean ± standard deviation over seeds; percent: of the means; "
    "better, worse and so on: in every seed, unless it is said in how many"
)


def table(results: Results) -> Any:
    """Return a ``rich`` table of mean and standard deviation over seeds.

    The caption says whether a rate or an initialisation beats the teleport.

    Raises:
        MissingExtra: If rich is not installed.
    """
    settings = results.settings
    title = (
        f"{settings.task}, {as_text(settings.model)} {settings.width} x {settings.depth}, "
        f"{settings.optimizer} {settings.lr:g}: {settings.budget} gradients of {settings.batch} "
        f"samples, {settings.seeds} seed{'s' * (settings.seeds > 1)}"
    )
    caption = f"{NOTE}\n{advice(results)}".strip()
    text = require("rich.text").Text  # which is no markup, as names of files might be
    sheet = require("rich.table").Table(title=text(title), caption=text(caption))
    summary = results.summary()
    columns = [name for name in ARMS if name in summary]
    sheet.add_column("", no_wrap=True)
    for column in (*columns, *(["difference"] if len(columns) == len(ARMS) else [])):
        sheet.add_column(column, justify="right")
    for name, heading in TITLES.items():
        if name in summary["baseline"]:
            cells = [_cell(summary[column][name]) for column in columns]
            last = [_difference(results, ARMS[0], name)] if len(columns) == len(ARMS) else []
            sheet.add_row(heading, *cells, *last)
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
        cells = map(_cell, (summary[arm][name], summary["teleport"][name]))
        sheet.add_row(f"  {arm}", *cells, _difference(results, arm, name))


def _difference(results: Results, arm: str, name: str) -> str:
    """Return what the teleport changes against another arm: in words, and as a statistic."""
    metric, value = METRICS[name], _cell(results.difference(arm)[name])
    pairs = [
        (a, b)
        for base, ours in zip(results.of(arm), results.of("teleport"), strict=True)
        if (a := metric(base)) is not None and (b := metric(ours)) is not None
    ]
    return f"{in_words(name, pairs)}\n{value}" if name in LESS_MORE else value


def in_words(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """Return the change of a metric in percent and in words.

    Args:
        name: The metric.
        pairs: Its value without teleports and with them, per seed.

    >>> in_words("final_loss", [(2.0, 1.0), (4.0, 1.0)]), in_words("accuracy", [(0.5, 0.625)])
    ('-66.7 %, better', '+12.5 points, better')
    >>> in_words("valid_loss", [(2.0, 1.0), (1.0, 2.0), (1.0, 1.5)])
    '+12.5 %, worse in 2 of 3'
    """
    base, ours = (fmean(values) for values in zip(*pairs, strict=True))
    less, more = (sum(sign * (b - a) > 0 for a, b in pairs) for sign in (-1, 1))
    count, word = max(
        (less, LESS_MORE[name][0]), (more, LESS_MORE[name][1]), key=lambda one: one[0]
    )
    says = "the same" if not count else word
    if less and more and less == more:
        says = f"{LESS_MORE[name][0]} in {less} of {len(pairs)}"
    elif 0 < count < len(pairs):
        says = f"{word} in {count} of {len(pairs)}"
    if not (math.isfinite(base) and math.isfinite(ours)):
        return says
    if name == "accuracy":
        return f"{100 * (ours - base):+.1f} points, {says}"
    return f"{percent(ours / base - 1)}, {says}" if base else says


def percent(change: float) -> str:
    """Return a change with its sign, and as many digits as tell it from -100 %.

    >>> percent(-0.125), percent(-0.9997), percent(29.0)
    ('-12.5 %', '-99.97 %', '30 times')
    """
    if change >= 9:
        return f"{1 + change:.3g} times"
    digits = max(1, min(4, -math.floor(math.log10(max(1 + change, 1e-6))) - 2))
    return f"{100 * change:+.{digits}f} %"


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
