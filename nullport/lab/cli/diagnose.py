"""Say whether gradients reach every layer of a model, and which scale is missing where.

Prints the scales of signals, gradients and weights of every linear map, a verdict, and what would
help more than a teleport.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.target import add_target, called
from nullport.lab.compare.extras import require
from nullport.lab.compare.results import plain
from nullport.lab.diagnose import Diagnosis, Scale, advice, diagnose, verdict

COLUMNS: dict[str, Callable[[Scale], str]] = {
    "weight": lambda one: one.name,
    "inputs": lambda one: f"{one.inputs:.3g}",
    "outputs": lambda one: f"{one.outputs:.3g}",
    "cotangent": lambda one: f"{one.cotangent:.3g}",
    "shrinks by": lambda one: f"{one.shrinkage:.3g}",
    "weight scale": lambda one: f"{one.weight:.3g}",
}
"""Columns of the table."""

CAPTION = (
    "inputs, outputs: root mean square; cotangent: norm of the gradient by the outputs; "
    "weight scale: rms(W) √in"
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_target(parser)
    parser.add_argument(
        "--picture", metavar="FILE.png", help="draw signals and cotangents layer by layer"
    )


def run(arguments: argparse.Namespace) -> None:
    """Diagnose what the user's function returns, and print it.

    Raises:
        UsageError: If the file or function is missing, returns something that is no network, the
            backend knows no networks, or the picture cannot be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    from nullport.lab.diagnose.picture import draw

    backend = backend_or_error(arguments.backend)
    if backend.graph is None:
        msg = f"invalid backend: {backend.name!r}; allowed: one that makes graphs"
        raise UsageError(msg)
    _check_picture(arguments.picture)
    with called(arguments.target) as returned:
        found = diagnose(backend.graph(returned))
    if arguments.json:
        print(json.dumps(as_dict(found), indent=1, allow_nan=False))
    else:
        console = require("rich.console").Console()
        console.print(table(found))
        console.print(f"{verdict(found)}\n{advice(found)}", highlight=False)
    if arguments.picture:
        draw(found, arguments.picture)


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis, and what it says, for JSON; numbers that are not finite are None."""
    record: dict[str, Any] = plain(found.as_dict())
    return {**record, "verdict": verdict(found), "advice": advice(found)}


def table(found: Diagnosis) -> Any:
    """Return a ``rich`` table, one line per linear map in the order of the forward pass.

    Raises:
        MissingExtra: If rich is not installed.
    """
    sheet = require("rich.table").Table(caption=CAPTION)
    for heading in COLUMNS:
        left = heading == "weight"
        sheet.add_column(heading, justify="left" if left else "right", overflow="fold")
    for one in found.maps:
        sheet.add_row(*(cell(one) for cell in COLUMNS.values()))
    return sheet


def _check_picture(name: str | None) -> None:
    """Check, before the work, that the picture can be written.

    Raises:
        UsageError: If it is not a PNG file in a folder that exists.
    """
    if name is None:
        return
    require("matplotlib.figure")
    path = Path(name)
    if path.suffix != ".png" or not path.absolute().parent.is_dir() or path.is_dir():
        msg = f"invalid picture: {name!r}; allowed: FILE.png in an existing folder"
        raise UsageError(msg)
