"""The results of a grid as a page of Markdown, with pictures beside it where rates were tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nullport.lab.output import write as write_file
from nullport.lab.suite.grid import Grid
from nullport.lab.suite.pictures import draw
from nullport.lab.suite.rates import page as page_by_rate
from nullport.lab.suite.tuned import comparisons
from nullport.lab.suite.tuned_page import page as page_of_tuned

Record = Mapping[str, Any]


def page(grid: Grid, records: Sequence[Record], shown: Mapping[str, str] | None = None) -> str:
    """Return the page.

    Args:
        grid: What was to be run.
        records: The records there are.
        shown: Files of pictures, by what they show.
    """
    if grid.tune is None:
        return page_by_rate(grid, records)
    return page_of_tuned(grid, records, shown or {})


def write(grid: Grid, records: Sequence[Record], path: Path) -> list[Path]:
    """Write the page and its pictures, and return their paths."""
    drawn: dict[str, Path] = {}
    if grid.tune is not None:
        found = comparisons(grid, {record["key"]: record for record in records})
        drawn = draw(found, path)
    write_file(path, page(grid, records, {k: p.name for k, p in drawn.items()}))
    return [path, *drawn.values()]
