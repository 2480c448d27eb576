"""Say whether gradients reach every layer of a model, and which scale is missing where.

Prints the scales of signals, gradients and weights of every linear map, a verdict, and what would
help more than a teleport.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.paths import writable
from nullport.lab.cli.target import add_target, called
from nullport.lab.compare.extras import require
from nullport.lab.compare.results import plain
from nullport.lab.diagnose import Diagnosis, Scale, advice, diagnose, verdict
from nullport.lab.progress import stages

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


def run(arguments: argparse.Namespace) -> Any:
    """Diagnose what the user's function returns, and print it, or return it for JSON.

    Raises:
        UsageError: If the file or function is missing, returns something that is no network, the
            backend knows no networks, or the picture cannot be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    from nullport.lab.diagnose.picture import draw

    if not arguments.json:
        require("rich.console")  # before the work, not after it
    if arguments.picture:
        require("matplotlib.figure")
        writable(arguments.picture, "picture", (".png",))
    with stages(3) as begin:
        found = _found(arguments, begin)
    if arguments.picture:
        draw(found, arguments.picture)
    if arguments.json:
        return as_dict(found)
    console = require("rich.console").Console()
    console.print(table(found))
    console.print(f"{verdict(found)}\n{advice(found)}", highlight=False, markup=False)
    return None


def _found(arguments: argparse.Namespace, begin: Callable[[str], None]) -> Diagnosis:
    begin(f"loading {arguments.backend}")
    backend = backend_or_error(arguments.backend)
    if backend.graph is None:
        msg = f"invalid backend: {backend.name!r}; allowed: one that makes graphs"
        raise UsageError(msg)
    begin(f"calling {arguments.target}")
    with called(arguments.target) as returned:
        begin("measuring a gradient")
        return diagnose(backend.graph(returned))


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
        sheet.add_column(
            heading, justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    for one in found.maps:
        sheet.add_row(*(cell(one) for cell in COLUMNS.values()))
    return sheet
