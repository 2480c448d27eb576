"""What a method does on a grid, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

EVEN = 0.005
"""Changes of a loss up to this one count as none."""


def sentence(method: str, changes: Sequence[float], better: int, worse: int) -> str:
    """Return what a method changes.

    Args:
        method: Its name.
        changes: Of the training loss at equal compute, one per cell.
        better: Cells in which it is better beyond doubt.
        worse: Cells in which it is worse beyond doubt.

    >>> sentence("slp", [-0.2, -0.1, 0.0], 2, 0)
    '**slp** ends 10.0 % lower in the median of 3 cells: better in 2, worse in none, even in 1.'
    >>> sentence("nullport", [0.001], 0, 0)
    '**nullport** ends level in 1 cell: better in none, worse in none, even in 1.'
    """
    middle = median(changes)
    much = f"{100 * abs(middle):.1f} %" if middle < 1 else f"{1 + middle:.3g} times"
    way = "level" if abs(middle) <= EVEN else f"{much} {'lower' if middle < 0 else 'higher'}"
    where = "the median of " * (len(changes) > 1) + f"{len(changes)} cell{'s' * (len(changes) > 1)}"
    counts = (better, worse, len(changes) - better - worse)
    shown = [
        f"{word} in {n or 'none'}"
        for word, n in zip(("better", "worse", "even"), counts, strict=True)
    ]
    return f"**{method}** ends {way} in {where}: {', '.join(shown)}."
