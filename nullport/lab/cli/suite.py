"""Run a declared grid of comparisons, resume it, and write what came out.

The grid is a TOML file (:mod:`nullport.lab.suite.grid`). Every run is a line of JSON; runs that are
there are not made again.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.compare import MissingData
from nullport.lab.compare.extras import require

PRESETS = ("quick", "full", "stuck", "paper")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("grid", metavar="GRID", nargs="?", help="TOML file that declares the runs")
    parser.add_argument(
        "--preset",
        metavar="|".join(PRESETS),
        help="a grid that comes with nullport: quick needs no datasets and a few minutes, full is "
        "that of the published experiments, stuck that of networks on plateaus, paper those of "
        "Wu et al. (2025) in their protocol",
    )
    parser.add_argument(
        "--cells",
        metavar="PATTERN",
        nargs="+",
        help="only cells whose label (their task, where they have none) fits a pattern",
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument(
        "--runs", metavar="FILE", help="records [default: name of the grid, .jsonl]"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write a page of Markdown here, and pictures beside it"
    )
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--processes", metavar="INT", type=int, default=1, help="[default: 1]")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> None:
    """Run the grid and write the report.

    Raises:
        UsageError: If a value is not allowed, data is missing, or nothing can be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    from nullport.lab.suite import report, runner
    from nullport.lab.suite.grid import Grid
    from nullport.lab.suite.live import live

    backend = backend_or_error(arguments.backend)
    for package in ("rich.live", "matplotlib.figure"):
        require(package)  # before the work, not after it
    if arguments.processes < 1:
        msg = f"invalid processes: {arguments.processes}; allowed: an integer of at least 1"
        raise UsageError(msg)
    if arguments.report and not Path(arguments.report).absolute().parent.is_dir():
        msg = f"invalid report: {arguments.report!r}; allowed: a file in an existing folder"
        raise UsageError(msg)
    try:
        path = source(arguments)
        declared = Grid.read(path)
        grid = declared.within(backend.methods, backend.only)
        grid = grid.matching(arguments.cells) if arguments.cells else grid
        for name in declared.methods.keys() - grid.methods.keys():
            print(f"left out: {name}, which {backend.name} does not have", file=sys.stderr)
        runs = Path(arguments.runs or f"{path.stem}.jsonl")
        with live(quiet=arguments.quiet) as progress:
            runner.run_grid(
                grid,
                runs,
                backend=arguments.backend,
                data=arguments.data,
                processes=arguments.processes,
                progress=progress,
            )
        records = runner.read(runs)
        if arguments.report:
            for written in report.write(grid, records, Path(arguments.report)):
                print(written)
        else:
            print(report.page(grid, records))
    except (ValueError, MissingData, OSError) as error:
        raise UsageError(str(error)) from error


def source(arguments: argparse.Namespace) -> Path:
    """Return the grid's file.

    Raises:
        UsageError: If not exactly one of grid and preset is given, or there is no such preset.
    """
    if (arguments.grid is None) == (arguments.preset is None):
        msg = f"invalid grid: {arguments.grid!r} and preset {arguments.preset!r}; allowed: one of "
        raise UsageError(msg + "them")
    if arguments.grid is not None:
        return Path(arguments.grid)
    if arguments.preset not in PRESETS:
        msg = f"invalid preset: {arguments.preset!r}; allowed: {', '.join(PRESETS)}"
        raise UsageError(msg)
    return Path(str(files("nullport.lab.suite") / "presets" / f"{arguments.preset}.toml"))
