"""Train the same network with and without teleports, on equal compute.

Beside them the baseline at other learning rates, and from a better initialisation: what else could
be done. Writes a table to the terminal, and a picture and all numbers to files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nullport import TeleportConfig
from nullport.lab.backends import Backend
from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.options import add_options, given
from nullport.lab.compare import (
    MissingData,
    Results,
    Settings,
    check,
    load_task,
    neighbours,
    run_neighbours,
)
from nullport.lab.compare import run as compare
from nullport.lab.compare.extras import require
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.training import Progress
from nullport.lab.output import write as write_file

NAME = "nullport-compare"
"""Name of the files written, before the suffix."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument("--out", metavar="DIR", default=".", help="where to write [default: .]")
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--quiet", action="store_true", help="print the paths only")
    parser.add_argument(
        "--neighbours",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the baseline also at a third, 3 and 10 times the learning rate, and from a "
        "better initialisation [default: True]",
    )
    add_options(parser, Settings, "training", skip=["teleport", "options"])
    add_options(parser, TeleportConfig, "teleports", "teleport_")


def run(arguments: argparse.Namespace) -> None:
    """Compare, show the result and write it.

    Raises:
        UsageError: If a value is not allowed, data is missing, or nothing can be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    from nullport.lab.compare.plot import plot
    from nullport.lab.compare.table import table

    for package in ("rich.progress", "matplotlib.figure"):
        require(package)  # before the work, not after it
    backend = backend_or_error(arguments.backend)
    try:
        settings = settings_from(arguments, backend)
        task = load_task(settings.task, arguments.data)
        check(settings, task, backend)
        folder = writable(arguments.out)
    except (ValueError, MissingData) as error:
        raise UsageError(str(error)) from error
    try:
        beside = list(neighbours(settings, task, backend)) if arguments.neighbours else []
        with bar(settings, beside, quiet=arguments.quiet) as progress:
            results = compare(settings, task, backend, progress)
            if beside:
                more = run_neighbours(settings, task, backend, progress)
                results = replace(results, runs=(*results.runs, *more))
    except ValueError as error:  # as of a method that cannot take the network
        msg = f"{settings.method} on {task.name}, {settings.model}: {error}"
        raise UsageError(msg) from error
    if not arguments.quiet:
        require("rich.console").Console().print(table(results))
    for path in write(results, folder, plot):
        print(path)


def settings_from(arguments: argparse.Namespace, backend: Backend) -> Settings:
    """Return the settings that the arguments give; the device is the backend's first by default.

    Raises:
        ValueError: If a value is not allowed; the message names both.
    """
    config = TeleportConfig(**given(arguments, TeleportConfig, "teleport_"))
    chosen = given(arguments, Settings)
    if "device" not in chosen and (devices := backend.devices()):
        chosen["device"] = devices[0]
    return Settings.make(**chosen, teleport=config)


def writable(name: str) -> Path:
    """Return a folder to write to, made if there is none.

    Raises:
        UsageError: If it cannot be made or written to.
    """
    folder = Path(name)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        msg = f"invalid out: {name!r}; allowed: a folder that can be written to"
        raise UsageError(msg)
    return folder


def write(results: Results, folder: Path, plot: Callable[[Results, Path], None]) -> list[Path]:
    """Write the picture and the numbers, and return their paths."""
    picture, numbers = folder / f"{NAME}.png", folder / f"{NAME}.json"
    write_file(numbers, json.dumps(results.as_dict(), indent=1, allow_nan=False) + "\n")
    plot(results, picture)
    return [picture, numbers]


@contextlib.contextmanager
def bar(settings: Settings, beside: Sequence[str], *, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar over all runs, on stderr, and yield the function that moves it.

    Args:
        settings: Settings of the comparison, both arms of which are run seed by seed.
        beside: Arms that are run after them, one after the other.
        quiet: Whether to show nothing.
    """
    console: Any = require("rich.console").Console(stderr=True)
    seeds = range(settings.seeds)
    order = [(arm, seed) for seed in seeds for arm in ARMS]
    order += [(arm, seed) for arm in beside for seed in seeds]
    total = settings.budget * len(order)
    with require("rich.progress").Progress(console=console, disable=quiet, transient=True) as shown:
        line = shown.add_task("", total=total)

        def progress(arm: str, seed: int, spent: float) -> None:
            done = settings.budget * order.index((arm, seed)) + spent
            shown.update(line, completed=done, description=f"seed {seed}, {arm}")

        yield progress
