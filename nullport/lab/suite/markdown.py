"""Numbers and tables of reports as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from nullport.lab.suite.statistics import interval

FACTOR = 10.0
"""Changes from this one on are written as a factor."""


def percent(value: float) -> str:
    """Return a change with its sign, a large one as a factor.

    >>> percent(-0.125), percent(29.0), percent(float("inf"))
    ('-12.5 %', 'x 30', 'diverged')
    """
    if not math.isfinite(value):
        return "diverged"
    return f"x {1 + value:.3g}" if value >= FACTOR else f"{100 * value:+.1f} %"


def median_text(values: Sequence[float]) -> str:
    """Return the median with its bootstrap interval.

    >>> median_text([0.1, 0.1, 0.1])
    '+10.0 % [+10.0 %, +10.0 %]'
    """
    low, high = interval(values)
    return f"{percent(median(values))} [{percent(low)}, {percent(high)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
