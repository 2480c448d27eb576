"""List every weight of a model with what a teleport would do to it; nothing is moved."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nullport._config import TeleportConfig
from nullport._report import LayerReport
from nullport.cli.errors import UsageError, backend_or_error
from nullport.cli.options import add_options, given
from nullport.compare.extras import require
from nullport.compare.results import plain

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
    parser.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments that returns (model, closure); for JAX "
        "(loss_fn, params, *batch), for NumPy and CuPy a graph",
    )
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--json", action="store_true", help="print JSON")
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
    except ValueError as error:
        raise UsageError(str(error)) from error
    path, name = split(arguments.target)
    with _imports_from(path.parent):
        returned = function(path, name)()
        try:
            layers = backend.inspect(returned, config)
        except (TypeError, ValueError) as error:
            msg = f"{arguments.target}: {error}"
            raise UsageError(msg) from error
    if arguments.json:
        print(json.dumps(plain([layer.as_dict() for layer in layers]), indent=1))
    else:
        require("rich.console").Console().print(table(layers))


def split(target: str) -> tuple[Path, str]:
    """Return the file and the function that ``FILE.py:FUNCTION`` names.

    Raises:
        UsageError: If there is no colon, or no such file.
    """
    file, _, name = target.rpartition(":")
    if not file or not name.isidentifier():
        msg = f"invalid target: {target!r}; allowed: FILE.py:FUNCTION"
        raise UsageError(msg)
    path = Path(file).resolve()
    if path.suffix != ".py" or not path.is_file():
        msg = f"no such file: {file!r}; allowed: an existing Python file, as in FILE.py:FUNCTION"
        raise UsageError(msg)
    return path, name


def function(path: Path, name: str) -> Callable[[], Any]:
    """Import a file and return one of its functions.

    Raises:
        UsageError: If it has no such function. Errors that the file itself raises pass through.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == path.stem]
        functions = ", ".join(n for n in own if callable(vars(module)[n])) or "none"
        msg = f"no such function in {path.name}: {name!r}; its functions: {functions}"
        raise UsageError(msg)
    return found  # type: ignore[no-any-return]


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


@contextlib.contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as it could if Python ran it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
