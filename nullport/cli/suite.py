"""Run a declared grid of comparisons, resume it, and write what came out.

The grid is a TOML file (:mod:`nullport.suite.grid`). Every run is a line of JSON; runs that are
there are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nullport.cli.errors import UsageError, backend_or_error
from nullport.compare import MissingData
from nullport.compare.extras import require


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("grid", metavar="GRID", help="TOML file that declares the runs")
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument("--runs", metavar="FILE", help="records [default: GRID with .jsonl]")
    parser.add_argument("--report", metavar="FILE", help="write a page of Markdown here")
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--processes", metavar="INT", type=int, default=1, help="[default: 1]")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> None:
    """Run the grid and write the report.

    Raises:
        UsageError: If a value is not allowed, data is missing, or nothing can be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    from nullport.suite import report, runner
    from nullport.suite.grid import Grid

    backend_or_error(arguments.backend)
    progress: Any = require("rich.progress")
    console = require("rich.console").Console(stderr=True)
    if arguments.processes < 1:
        msg = f"invalid processes: {arguments.processes}; allowed: an integer of at least 1"
        raise UsageError(msg)
    try:
        path = Path(arguments.grid)
        grid = Grid.read(path)
        runs = Path(arguments.runs) if arguments.runs else path.with_suffix(".jsonl")
        with progress.Progress(console=console, disable=arguments.quiet) as bar:
            line = bar.add_task("runs", total=None)
            runner.run(
                list(grid.jobs()),
                runs,
                backend=arguments.backend,
                data=arguments.data,
                processes=arguments.processes,
                progress=lambda done, total: bar.update(line, completed=done, total=total),
            )
        page = report.report(grid, runner.read(runs))
        if arguments.report:
            Path(arguments.report).write_text(page, "utf-8")
            print(arguments.report)
        else:
            print(page)
    except (ValueError, MissingData, OSError) as error:
        raise UsageError(str(error)) from error
