"""Fetch public datasets, each checked against its checksum, or list where they are.

They go to --data, else to the folder that NULLPORT_DATA names, else to the user's cache.
"""

from __future__ import annotations

import argparse
from typing import Any

from nullport.lab.cli.errors import UsageError
from nullport.lab.compare import MissingData
from nullport.lab.compare.extras import require
from nullport.lab.compare.sources import folder_of
from nullport.lab.compare.tasks import SOURCES


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("action", choices=("fetch", "list"), help="what to do")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"datasets: {', '.join(SOURCES)} [default: all]"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> None:
    """Fetch datasets, or say which are there.

    Raises:
        UsageError: If a name is unknown, or a dataset cannot be fetched or written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    unknown = [name for name in arguments.names if name not in SOURCES]
    if unknown:
        msg = f"invalid dataset: {', '.join(unknown)}; allowed: {', '.join(SOURCES)}"
        raise UsageError(msg)
    answer = _fetched if arguments.action == "fetch" else _found
    try:
        for name in arguments.names or SOURCES:
            print(answer(name, arguments))
    except OSError as error:
        raise UsageError(str(error)) from error


def _found(name: str, arguments: argparse.Namespace) -> str:
    try:
        return f"{name}: {SOURCES[name].find(arguments.data)[0].parent}"
    except MissingData:
        return f"{name}: not in {folder_of(arguments.data)}"


def _fetched(name: str, arguments: argparse.Namespace) -> str:
    console = require("rich.console").Console(stderr=True)
    with require("rich.progress").Progress(
        console=console, disable=arguments.quiet, transient=True
    ) as shown:
        paths = SOURCES[name].fetch(arguments.data, _Bar(shown, name))
    return f"{name}: {paths[0].parent}"


class _Bar:
    """A progress bar of rich, as pooch moves it."""

    def __init__(self, shown: Any, name: str) -> None:
        self._shown, self._line = shown, shown.add_task(name, total=None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Take in the total that pooch sets."""
        if name == "total":
            self._shown.update(self._line, total=value)
        super().__setattr__(name, value)

    def update(self, count: int) -> None:
        """Count bytes."""
        self._shown.advance(self._line, count)

    def reset(self) -> None:
        """Begin anew."""
        self._shown.reset(self._line)

    def close(self) -> None:
        """Leave the bar to its group."""
