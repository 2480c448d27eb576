"""A grid of training runs, declared in TOML.

[defaults]                        # settings of every run, as ``nullport compare`` has them
seeds = 5
schedule = ["constant", "cosine"] # lists are multiplied out

[tune]                            # optional: every method gets the best of the learning rates,
seeds = 1                         # found with so many runs per rate, on other seeds

[rates]                           # learning rates by optimizer, of cells that name none
sgd = [0.01, 0.03, 0.1]

[[cells]]
task = "mnist"
optimizer = ["sgd", "momentum"]

[methods.nullport]                # what is compared with no teleports at all

[methods.threshold]               # settings that differ; ``teleport`` are those of teleports
teleport = { projection = "threshold" }
only = { optimizer = ["sgd"] }    # cells it is run on, by their settings

[methods.own]                     # a function of your own, in a file
teleport = { objective = "own.py:objective", projection = "own.py:gains" }

[methods.symmetry]                # a method that is not nullport's, with its own options;
method = "symmetry"               # lists in ``options`` and ``teleport`` are tuned with the rate
options = { rate = [0.01, 0.1] }

[methods.he]                      # no teleports: what else a user could do
method = "none"
init = "he"

[sensitivity]                     # one field of the default TeleportConfig at a time
only = { task = ["mnist"] }

[connectivity]                    # loss barriers between the solutions with and without teleports
only = { task = ["mnist"] }

Without ``[tune]`` every rate is a cell of its own, and its methods are compared at that rate.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nullport.lab.compare import Settings
from nullport.lab.compare.extras import require
from nullport.lab.compare.settings import NONE, NULLPORT
from nullport.lab.compare.teleports import from_text, record_of
from nullport.lab.named import GROUPS, known_as
from nullport.lab.suite.schema import BASELINE, check, product

Entry = Mapping[str, Any]

_ARM = ("teleport", "every", "at", "captured", "guard", "judge", "method", "options")
"""Settings that a run without teleports does not depend on."""

_TABLES = ("teleport", "options")
"""Settings of a method's own; lists in them are tuned with the rate."""

_ABOUT = ("only", "note")
"""Entries of a method that are no settings."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        method: Name of the method.
        settings: Settings of the run.
        seed: Its seed.
    """

    method: str
    settings: Settings
    seed: int

    @property
    def arm(self) -> str:
        """``"baseline"`` where nothing teleports, else ``"teleport"``."""
        still = self.method == BASELINE or self.settings.method == NONE
        return BASELINE if still else "teleport"

    @property
    def key(self) -> str:
        """What the run's result depends on, as text: equal keys are equal runs."""
        skip = {"seeds", *(_ARM if self.arm == BASELINE else ())}
        record = {k: v for k, v in plain_settings(self.settings).items() if k not in skip}
        return json.dumps([self.arm, self.seed, record], sort_keys=True)


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    return dict(json.loads(json.dumps(record_of(settings))))


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        cells: Settings of every cell, without those of methods; ``lr`` is a list where it is tuned.
        methods: Settings that each method changes, by its name.
        tune: The section ``[tune]``, None if rates are cells.
        sensitivity: The section ``[sensitivity]``, None if there is none.
        connectivity: The section ``[connectivity]``, None if there is none.
    """

    cells: tuple[Entry, ...]
    methods: Mapping[str, Entry] = field(default_factory=lambda: {"default": {}})
    tune: Entry | None = None
    sensitivity: Entry | None = None
    connectivity: Entry | None = None

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read a grid from a file.

        Raises:
            ValueError: If the file is no grid, or a setting is not allowed; the message names it.
            OSError: If the file cannot be read.
        """
        record = _parsed(path)
        check(record, path.name)
        grid = cls(
            tuple(_cells(record)),
            record.get("methods", {"default": {}}),
            *(record.get(name) for name in ("tune", "sensitivity", "connectivity")),
        )
        for cell, method in grid.pairs():  # every setting is checked before anything runs
            grid.check(cell, method, path.name)
        if grid.sensitivity is not None:
            _ = grid.varied
        return grid

    def check(self, cell: Entry, method: str, file: str) -> None:
        """Check that the settings of a method on a cell go together.

        Raises:
            ValueError: If they do not; the message names cell, method and file.
        """
        try:
            self.trials(cell, method)
        except ValueError as error:
            msg = f"invalid grid: {_name(cell)} with {method} of {file}: {error}"
            raise ValueError(msg) from error

    def within(
        self, methods: Sequence[str], only: Mapping[str, Sequence[str]] | None = None
    ) -> Grid:
        """Return the grid without what no backend with these methods can run.

        Args:
            methods: Methods besides nullport's.
            only: Values of settings that it has, by name, where these are not all.

        Raises:
            ValueError: If nothing is left.
        """
        known = {NULLPORT, NONE, *methods}
        lists = {"method": known, **(only or {})}
        kept = {
            name: entry
            for name, entry in self.methods.items()
            if all(
                entry[k] in values or (k in GROUPS and known_as(k, str(entry[k])))
                for k, values in lists.items()
                if k in entry
            )
        }
        if not kept:
            msg = f"invalid grid: only {', '.join(self.methods)}; allowed with this backend: "
            raise ValueError(msg + "methods of " + ", ".join(sorted(known)))
        return replace(self, methods=kept)

    def foreign(self) -> set[str]:
        """Return the methods that are not nullport's own, as cells and methods name them."""
        found = {str(entry.get("method", NULLPORT)) for entry in self.methods.values()}
        found |= {str(cell.get("method", NULLPORT)) for cell in self.cells}
        return {name for name in found - {NULLPORT, NONE} if known_as("method", name) is None}

    def matching(self, patterns: Sequence[str]) -> Grid:
        """Return the grid of the cells whose label, or else task, fits a shell-style pattern.

        Raises:
            ValueError: If a pattern fits no cell.
        """
        names = [_name(cell) for cell in self.cells]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                msg = f"invalid cells: {pattern!r}; allowed: patterns of "
                raise ValueError(msg + "; ".join(dict.fromkeys(names)))
        pairs = zip(self.cells, names, strict=True)
        return replace(
            self,
            cells=tuple(
                cell for cell, name in pairs if any(fnmatch.fnmatchcase(name, p) for p in patterns)
            ),
        )

    @property
    def varied(self) -> str:
        """The method whose teleports ``[sensitivity]`` varies: the first that is nullport's.

        Raises:
            ValueError: If there is none.
        """
        for name, change in self.methods.items():
            if change.get("method", NULLPORT) == NULLPORT:
                return name
        msg = f"invalid grid: [sensitivity] with only {', '.join(self.methods)}; allowed: "
        raise ValueError(msg + "with a method of nullport's")

    def pairs(self) -> Iterator[tuple[Entry, str]]:
        """Yield every cell with every method that is run on it, the baseline first."""
        for cell in self.cells:
            for name in (BASELINE, *self.methods):
                if applies(self.methods.get(name, {}), cell):
                    yield cell, name

    def trials(self, cell: Entry, method: str) -> list[Settings]:
        """Return the settings among which a method's are tuned; one where nothing is."""
        change = {k: v for k, v in self.methods.get(method, {}).items() if k not in _ABOUT}
        rates = cell["lr"] if isinstance(cell.get("lr"), list) else [cell.get("lr")]
        tables = []
        for name in _TABLES:
            merged = {**cell.get(name, {}), **change.pop(name, {})}
            # Without teleports there is nothing of them to tune.
            kept = {} if method == BASELINE else merged
            tables.append([(name, chosen) for chosen in product(kept)])
        return [
            _settings({**cell, **change, "lr": lr, **dict(chosen)})
            for lr, *chosen in itertools.product(rates, *tables)
        ]

    def jobs(self) -> Iterator[Job]:
        """Yield the runs without tuning, seed after seed: what is cut short has all cells."""
        most = max(int(cell.get("seeds", 3)) for cell in self.cells)
        for seed, (cell, name) in itertools.product(range(most), list(self.pairs())):
            if seed < cell.get("seeds", 3):
                yield from (Job(name, settings, seed) for settings in self.trials(cell, name))


def applies(change: Entry, cell: Entry) -> bool:
    """Whether the entry ``only`` of a method or section allows a cell."""
    only = change.get("only", {})
    known = {**_defaults(cell), **cell} if only else {}
    return all(
        known.get(name) in (allowed if isinstance(allowed, list) else [allowed])
        for name, allowed in only.items()
    )


def _defaults(cell: Entry) -> dict[str, Any]:
    """Return what the settings of a cell are where it names none."""
    named = {name: cell[name] for name in ("task", "model", "optimizer") if name in cell}
    made = Settings.make(**named)
    return {f.name: getattr(made, f.name) for f in fields(made)}


def _cells(record: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the cells, with the defaults, multiplied out; rates stay lists where they are tuned."""
    for entry in record["cells"]:
        given = {**record.get("defaults", {}), **entry}
        kept = {"lr": given.pop("lr")} if "tune" in record and "lr" in given else {}
        for cell in product(given):
            rates = record.get("rates", {}).get(cell.get("optimizer", "sgd"))
            if rates is None or "lr" in cell or kept:
                yield {**cell, **kept}
            elif "tune" in record:
                yield {**cell, "lr": rates}
            else:
                yield from ({**cell, "lr": lr} for lr in rates)


def _parsed(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return dict(toml.loads(path.read_text("utf-8")))
    except ValueError as error:
        msg = f"invalid grid: {path.name}: {error}; allowed: TOML"
        raise ValueError(msg) from error


def _name(cell: Entry) -> str:
    return str(cell.get("label", cell.get("task", "digits")))


def _settings(given: dict[str, Any]) -> Settings:
    given = {name: v for name, v in given.items() if name != "label" and v is not None}
    config = from_text(given.pop("teleport", {}))
    return Settings.make(given.pop("task", "digits"), **given, teleport=config)
