"""What all pictures share: colours that everybody can tell apart, plain ticks, whole names.

The colours are those of Okabe and Ito (2008); lines differ by their dashes too, and points by their
shape, so that a picture can be read without colours.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nullport.lab.compare.extras import require

GREY, RED = "#4d4d4d", "#d55e00"
"""Colours of no teleports, and of the first method."""

_COLOURS = (RED, "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
_SHAPES = ("o", "s", "D", "v", "P", "X", "*")

KEPT, REFUSED = "teleport, kept", "teleport, refused and undone"
"""What the marks on a curve stand for."""

SPAN = 3.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


class Style(NamedTuple):
    """How a line, or a point, is drawn."""

    colour: str
    dash: Any
    shape: str


def styles(names: Iterable[str], first: int = 0) -> dict[str, Style]:
    """Return a style for each name, in their order; ``first`` of them are left to others."""
    ways = itertools.islice(
        zip(*map(itertools.cycle, (_COLOURS, _DASHES, _SHAPES)), strict=False), first, None
    )
    return {name: Style(*way) for name, way in zip(names, ways, strict=False)}


def new(width: float, height: float) -> Any:
    """Return an empty figure of so many inches.

    It is one of its own: pyplot would keep it, and choose a backend for the whole process.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    made = require("matplotlib.figure").Figure
    return made(figsize=(width, height), layout="constrained", dpi=120)


def title(figure: Any, text: str) -> None:
    """Put a title above all panels, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(text, int(9 * figure.get_figwidth()), break_on_hyphens=False))


def log_where_wide(axes: Any) -> None:
    """Make the vertical axis logarithmic if its values are positive and span a factor of 3.

    Ticks are plain numbers: 0.02, and no power of ten.
    """
    values = [y for line in axes.lines for y in np.ravel(line.get_ydata()) if math.isfinite(y)]
    positive = [y for y in values if y > 0]
    if not positive or max(positive) < SPAN * min(positive):
        return
    ticker = require("matplotlib.ticker")
    span = max(positive) / min(positive)
    axes.set_yscale("log")  # zeros, as of dead units, are left out
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if span < 50 else (1,)))
    axes.yaxis.set_major_formatter(lambda y, _: plain(y))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def plain(value: float) -> str:
    """Return a number without an exponent, where it has few zeros.

    >>> plain(0.02), plain(1000.0), plain(1e-9)
    ('0.02', '1000', '1e-09')
    """
    few = value == 0 or 1e-6 <= abs(value) < 1e6
    return np.format_float_positional(value, 6, trim="-", fractional=False) if few else f"{value:g}"


def mark(axes: Any, places: Iterable[tuple[float, float, bool]], colour: str) -> None:
    """Mark teleports on a curve: triangles those that were kept, crosses those that were refused.

    Args:
        axes: The panel.
        places: Position, height, and whether it was kept.
        colour: That of the curve.
    """
    points = list(places)
    for kept, shape, label in ((True, "^", KEPT), (False, "x", REFUSED)):
        mine = [(x, y) for x, y, flag in points if flag is kept and math.isfinite(y)]
        if mine:
            axes.plot(*zip(*mine, strict=True), shape, color=colour, ms=6, label=label, zorder=3)


def legend(figure: Any, panels: Iterable[Any], says: str, columns: int = 4) -> None:
    """Put one legend for all panels below them; its title says what lines and bands are."""
    entries = dict(_entries(panels))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", title=says,
        ncols=min(columns, max(1, len(entries))), fontsize=9, title_fontsize=9, alignment="center",
    )  # fmt: skip


def _entries(panels: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        yield from zip(labels, handles, strict=True)
