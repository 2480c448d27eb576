"""Run a declared grid of comparisons, resume it, and write what came out.

The grid is a TOML file (:mod:`nullport.lab.suite.grid`). Runs are kept in a store
(:mod:`nullport.lab.suite.store`), and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nullport.lab.backends import Backend, known_methods
from nullport.lab.cli.errors import UsageError, backend_or_error
from nullport.lab.cli.paths import writable
from nullport.lab.compare import MissingData
from nullport.lab.compare.extras import require

if TYPE_CHECKING:
    from nullport.lab.suite.grid import Grid

PRESETS = ("quick", "full", "stuck", "paper")

EXPORT = "export"
"""What stands in place of a grid to write the records of a store."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.usage = (
        "nullport suite [options] GRID\n       nullport suite [options] --preset NAME\n"
        f"       nullport suite {EXPORT} STORE [--out FILE.jsonl|FILE.csv]"
    )
    parser.add_argument("grid", metavar="GRID", nargs="?", help="TOML file that declares the runs")
    parser.add_argument("store", metavar="STORE", nargs="?", help=f"with {EXPORT}: store of runs")
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
        "--runs",
        metavar="FILE",
        help="store of runs, which several suites may share; a name in .jsonl is taken in and "
        "written whole at the end, its store lies beside it [default: name of the grid, .sqlite]",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write a page of Markdown here, and pictures beside it"
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"with {EXPORT}: where to write [default: JSONL to stdout]"
    )
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--processes", metavar="INT", type=int, default=1, help="[default: 1]")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="make the runs on the Dask cluster of this scheduler, as in tcp://host:8786",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> None:
    """Run the grid and write the report, or write the records of a store.

    Raises:
        UsageError: If a value is not allowed, data is missing, or nothing can be written.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    try:
        if arguments.grid == EXPORT:
            _export(arguments)
        else:
            _suite(arguments)
    except (ValueError, MissingData, OSError) as error:
        raise UsageError(str(error)) from error


def _export(arguments: argparse.Namespace) -> None:
    from nullport.lab.suite import exchange, store

    path = Path(arguments.store or "")
    if not path.is_file():
        msg = f"invalid store: {arguments.store!r}; allowed: a file that nullport suite made"
        raise UsageError(msg)
    records = store.read(path)
    if arguments.out:
        exchange.export(records, Path(arguments.out))
        print(arguments.out)
    else:
        sys.stdout.write(exchange.text(records, ".jsonl"))


def _suite(arguments: argparse.Namespace) -> None:
    from nullport.lab.suite import exchange, report, runner
    from nullport.lab.suite.live import live
    from nullport.lab.suite.store import Store

    backend = _checked(arguments)
    path = source(arguments)
    grid = _grid(path, backend, arguments.cells)
    runs = Path(arguments.runs or f"{path.stem}.sqlite")
    kept = exchange.store_of(runs)
    with Store(kept) as store:
        exchange.take_in(runs, store)
        with _resumable(store, runs), live(quiet=arguments.quiet) as progress:
            runner.run_grid(
                grid,
                kept,
                backend=arguments.backend,
                data=arguments.data and str(Path(arguments.data).absolute()),
                processes=arguments.processes,
                scheduler=arguments.scheduler,
                progress=progress,
            )
        records = store.records()
    if arguments.report:
        for written in report.write(grid, records, Path(arguments.report)):
            print(written)
    else:
        print(report.page(grid, records))


def _checked(arguments: argparse.Namespace) -> Backend:
    """Return the backend; what else is needed after the work is checked before it.

    Raises:
        UsageError: If a value is not allowed.
        MissingExtra: If a package of the extra ``cli`` is not installed.
    """
    backend = backend_or_error(arguments.backend)
    for package in ("rich.live", "matplotlib.figure", "scipy.stats", "pydantic"):
        require(package)
    if arguments.store is not None:
        msg = f"invalid store: {arguments.store!r}; allowed: none, but with {EXPORT}"
        raise UsageError(msg)
    if arguments.processes < 1:
        msg = f"invalid processes: {arguments.processes}; allowed: an integer of at least 1"
        raise UsageError(msg)
    for name in ("report", "out"):
        if getattr(arguments, name):
            writable(getattr(arguments, name), name)
    return backend


def _grid(path: Path, backend: Backend, cells: list[str] | None) -> Grid:
    """Return the part of the grid that the backend and the patterns leave."""
    from nullport.lab.suite.grid import Grid

    declared = Grid.read(path)
    strange = declared.foreign() - set(backend.methods)
    known = known_methods() if strange else None
    if known is not None and not strange <= known:
        unknown = ", ".join(sorted(strange - known))
        msg = f"invalid method: {unknown} of {path.name}; allowed: nullport, none, "
        raise UsageError(msg + ", ".join(sorted(known)))
    grid = declared.within(backend.methods, backend.only)
    for name in declared.methods.keys() - grid.methods.keys():
        print(f"left out: {name}, which {backend.name} does not have", file=sys.stderr)
    return grid.matching(cells) if cells else grid


@contextlib.contextmanager
def _resumable(store: Any, runs: Path) -> Iterator[None]:
    """Say how to go on after what stops the block, and write the runs as JSONL where asked to.

    A request to terminate stops it as Ctrl-C does.
    """
    from nullport.lab.suite import exchange

    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # only the main thread may say so
        before = None
    try:
        yield
    except BaseException as stop:
        with contextlib.suppress(OSError):  # what stopped it is what to report
            exchange.give_out(store, runs)
        if isinstance(stop, KeyboardInterrupt | SystemExit):
            count = len(store.keys())
            print(
                f"nullport: {count} runs are kept in {store.path}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    exchange.give_out(store, runs)


def _terminate(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


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
