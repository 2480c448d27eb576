"""Train the same network with and without teleports, on equal compute.

Beside them the baseline at other learning rates, and from a better initialisation: what else could
be done. Writes a table to the terminal, and a picture and all numbers to files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nullport import TeleportConfig
from nullport.lab import output
from nullport.lab.backends import Backend
from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.options import add_options, given
from nullport.lab.cli.paths import writable
from nullport.lab.compare import (
    MissingData,
    Results,
    Settings,
    Task,
    check,
    load_task,
    neighbours,
    run_neighbours,
)
from nullport.lab.compare import run as compare
from nullport.lab.compare.advice import advice
from nullport.lab.compare.extras import require
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.teleports import as_text
from nullport.lab.compare.training import Progress
from nullport.lab.progress import bar, stages

NAME = "nullport-compare"
"""Name of the files written, before the suffix."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument("--out", metavar="DIR", default=".", help="where to write [default: .]")
    parser.add_argument(
        "--backend", metavar="NAME", default="torch", help="or FILE.py:NAME [default: torch]"
    )
    parser.add_argument("--quiet", action="store_true", help="print the paths only")
    parser.add_argument("--json", action="store_true", help="print JSON: all that is written")
    parser.add_argument(
        "--neighbours",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the baseline also at a third, 3 and 10 times the learning rate, and from a "
        "better initialisation [default: True]",
    )
    add_options(parser, Settings, "training", skip=["teleport", "options"])
    add_options(parser, TeleportConfig, "teleports", "teleport_")


def run(arguments: argparse.Namespace) -> Any:
    """Compare, show the result and write it, or return it for JSON.

    Raises:
        UsageError: If a value is not allowed, data is missing, or nothing can be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    files = outputs(arguments.out)
    for package in ("rich.progress", "matplotlib.figure"):
        require(package)  # before the work, not after it
    with stages(2) as begin:
        begin(f"loading {arguments.backend}")
        backend = backend_or_error(arguments.backend)
        try:
            settings = settings_from(arguments, backend)
            begin(f"loading {settings.task}")
            task = load_task(settings.task, arguments.data)
            check(settings, task, backend)
        except (ValueError, MissingData) as error:
            raise UsageError(str(error)) from error
    results = _compared(arguments, settings, task, backend)
    quiet = arguments.quiet or arguments.json
    if not quiet:
        from nullport.lab.compare.table import table

        require("rich.console").Console().print(table(results))
    try:
        write(results, *files)
    except OSError as error:
        msg = f"cannot write {error.filename}: {error.strerror}"
        raise UsageError(msg) from error
    if arguments.json:
        said = {"advice": advice(results), "files": [str(path) for path in files]}
        return {**results.as_dict(), **said}
    for path in files:
        print(path)
    return None


def _compared(
    arguments: argparse.Namespace, settings: Settings, task: Task, backend: Backend
) -> Results:
    """Run both arms, and what else is asked for."""
    try:
        beside = list(neighbours(settings, task, backend)) if arguments.neighbours else []
        with progress(settings, beside, quiet=arguments.quiet) as tell:
            results = compare(settings, task, backend, tell)
            if beside:
                more = run_neighbours(settings, task, backend, tell)
                results = replace(results, runs=(*results.runs, *more))
    except Exception as error:  # as of a method that cannot take the network
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        if kind and not settings.own and ":" not in arguments.backend:
            raise
        msg = f"{as_text(settings.method)} on {task.name}, {as_text(settings.model)}: {kind}{error}"
        raise UsageError(" ".join(msg.split())) from error
    return results


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


def outputs(name: str) -> tuple[Path, Path]:
    """Return the picture and the file of numbers in a folder, made if there is none.

    Raises:
        UsageError: If it cannot be made, or one of them cannot be written to.
    """
    folder = Path(name)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        msg = f"invalid out: {name!r}; allowed: a folder that can be written to"
        raise UsageError(msg)
    picture, numbers = (writable(str(folder / f"{NAME}{end}"), "out") for end in (".png", ".json"))
    return picture, numbers


def write(results: Results, picture: Path, numbers: Path) -> None:
    """Write the picture and the numbers.

    Raises:
        OSError: If one cannot be written; the message names it.
    """
    from nullport.lab.compare.plot import plot

    output.write(numbers, json.dumps(results.as_dict(), indent=1, allow_nan=False) + "\n")
    plot(results, picture)


@contextlib.contextmanager
def progress(settings: Settings, beside: Sequence[str], *, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar over all runs, on stderr, and yield the function that moves it.

    Args:
        settings: Settings of the comparison, both arms of which are run seed by seed.
        beside: Arms that are run after them, one after the other.
        quiet: Whether to show nothing.
    """
    seeds = range(settings.seeds)
    order = [(arm, seed) for seed in seeds for arm in ARMS]
    order += [(arm, seed) for arm in beside for seed in seeds]
    place = {one: i for i, one in enumerate(order)}
    with bar(settings.budget * len(order), quiet=quiet) as tell:
        yield lambda arm, seed, spent: tell(
            settings.budget * place[arm, seed] + spent, f"seed {seed}, {arm}"
        )
