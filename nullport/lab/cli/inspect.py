"""List every weight of a model with what a teleport would do to it; nothing is moved."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from nullport import LayerReport, TeleportConfig
from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.options import add_options, given
from nullport.lab.cli.target import add_target, called
from nullport.lab.compare.extras import require
from nullport.lab.compare.results import plain
from nullport.lab.compare.teleports import check_functions

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


def run(arguments: argparse.Namespace) -> None:
    """Inspect what the user's function returns, and print it.

    Raises:
        UsageError: If the file or function is missing, returns something else than a model and a
            closure, or the closure is unsuitable.
        MissingExtra: If rich is not installed and no JSON is asked for.
    """
    backend = backend_or_error(arguments.backend)
    try:
        config = TeleportConfig(**given(arguments, TeleportConfig, "teleport_"))
        check_functions(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with called(arguments.target) as returned:
        layers = backend.inspect(returned, config)
    if arguments.json:
        print(json.dumps(plain([layer.as_dict() for layer in layers]), indent=1))
    else:
        require("rich.console").Console().print(table(layers))


def table(layers: Sequence[LayerReport]) -> Any:
    """Return a ``rich`` table, one line per weight.

    Raises:
        MissingExtra: If rich is not installed.
    """
    sheet = require("rich.table").Table()
    for heading in COLUMNS:
        sheet.add_column(heading, justify="right" if heading in list(COLUMNS)[2:-1] else "left")
    for layer in layers:
        first, *numbers, last = (cell(layer) for cell in COLUMNS.values())
        sheet.add_row(first, *(numbers if layer.kind else [""] * len(numbers)), last)
    return sheet
