"""List every weight of a model with what a teleport would do to it; nothing is moved."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from nullport import LayerReport, TeleportConfig
from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.options import add_options, given
from nullport.lab.cli.target import add_target, called
from nullport.lab.compare.extras import require
from nullport.lab.compare.teleports import check_functions
from nullport.lab.progress import stages

COLUMNS: dict[str, Callable[[LayerReport], str]] = {
    "weight": lambda layer: layer.name,
    "map": lambda layer: layer.kind,
    "inputs": lambda layer: str(layer.in_features),
    "samples": lambda layer: str(layer.samples),
    "rank": lambda layer: str(layer.rank),
    "null": lambda layer: str(layer.null_dim),
    "a teleport would": lambda layer: "not move it: " + layer.reason if layer.reason else "move it",
}
"""Columns of the table; those between the first two and the last are of captured weights."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_target(parser)
    add_options(parser, TeleportConfig, "teleports", "teleport_")


def run(arguments: argparse.Namespace) -> Any:
    """Inspect what the user's function returns, and print it, or return it for JSON.

    Raises:
        UsageError: If the file or function is missing, returns something else than a model and a
            closure, or the closure is unsuitable.
        MissingExtra: If rich is not installed and no JSON is asked for.
    """
    with stages(3) as begin:
        layers = _layers(arguments, begin)
    if arguments.json:
        return [layer.as_dict() for layer in layers]
    require("rich.console").Console().print(table(layers))
    return None


def _layers(arguments: argparse.Namespace, begin: Callable[[str], None]) -> list[LayerReport]:
    begin(f"loading {arguments.backend}")
    backend = backend_or_error(arguments.backend)
    try:
        config = TeleportConfig(**given(arguments, TeleportConfig, "teleport_"))
        check_functions(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not arguments.json:
        require("rich.console")  # before the work, not after it
    begin(f"calling {arguments.target}")
    with called(arguments.target) as returned:
        begin("looking at every weight")
        return list(backend.inspect(returned, config))


def table(layers: Sequence[LayerReport]) -> Any:
    """Return a ``rich`` table, one line per weight.

    Raises:
        MissingExtra: If rich is not installed.
    """
    sheet = require("rich.table").Table()
    for heading in COLUMNS:  # names fold where there is no room; nothing is clipped
        number = heading in list(COLUMNS)[2:-1]
        sheet.add_column(
            heading, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for layer in layers:
        first, *numbers, last = (cell(layer) for cell in COLUMNS.values())
        sheet.add_row(first, *(numbers if layer.kind else [""] * len(numbers)), last)
    return sheet
