"""A grid of training runs, declared in TOML.

[defaults]                        # settings of every run, as ``nullport compare`` has them
seeds = 3

[[cells]]                         # lists are multiplied out
task = "mnist"
optimizer = ["sgd", "momentum"]
lr = [0.01, 0.1]

[methods.default]                 # what is compared with no teleports at all

[methods.threshold]               # settings that differ; ``teleport`` are those of teleports
teleport = { projection = "threshold" }
only = { optimizer = ["sgd"] }    # cells it is run on, by their settings
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nullport._config import TeleportConfig
from nullport.compare import Settings
from nullport.compare.extras import require

BASELINE = "baseline"
"""Name of the method that does not teleport."""

_ARM = {f.name for f in fields(Settings)} & {
    "teleport",
    "every",
    "at",
    "captured",
    "guard",
    "judge",
}
"""Settings that a run without teleports does not depend on."""


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
    def key(self) -> str:
        """What the run's result depends on, as text: equal keys are equal runs."""
        skip = {"seeds", *(_ARM if self.method == BASELINE else ())}
        record = {k: v for k, v in plain_settings(self.settings).items() if k not in skip}
        arm = BASELINE if self.method == BASELINE else "teleport"
        return json.dumps([arm, self.seed, record], sort_keys=True)


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON has them."""
    record = {f.name: getattr(settings, f.name) for f in fields(settings)}
    config = settings.teleport
    record["teleport"] = {f.name: getattr(config, f.name) for f in fields(config)}
    return dict(json.loads(json.dumps(record)))


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        cells: Settings of every cell, without those of methods.
        methods: Settings that each method changes, by its name.
    """

    cells: tuple[Mapping[str, Any], ...]
    methods: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read a grid from a file.

        Raises:
            ValueError: If the file is no grid, or a setting is not allowed; the message names it.
            OSError: If the file cannot be read.
        """
        toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
        record = toml.loads(path.read_text("utf-8"))
        unknown = set(record) - {"defaults", "cells", "methods"}
        if unknown or not record.get("cells"):
            msg = f"invalid grid: {', '.join(sorted(unknown)) or 'no cells'} in {path.name}; "
            msg += "allowed: [defaults], [[cells]] (at least one) and [methods.NAME]"
            raise ValueError(msg)
        cells = [cell for entry in record["cells"] for cell in _product(entry)]
        grid = cls(
            tuple({**record.get("defaults", {}), **cell} for cell in cells),
            record.get("methods", {"default": {}}),
        )
        list(grid.jobs())  # every setting is checked before anything runs
        return grid

    def jobs(self) -> Iterator[Job]:
        """Yield every run, seed after seed, so that a grid that is cut short has all cells."""
        most = max(int(cell.get("seeds", 3)) for cell in self.cells)
        for seed, cell in itertools.product(range(most), self.cells):
            if seed >= cell.get("seeds", 3):
                continue
            yield Job(BASELINE, _settings(cell, {}), seed)
            for name, change in self.methods.items():
                if _applies(change, cell):
                    yield Job(name, _settings(cell, change), seed)


def _product(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    for combination in itertools.product(*values):
        yield dict(zip(entry, combination, strict=True))


def _applies(change: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    only = change.get("only", {})
    return all(cell.get(name) in allowed for name, allowed in only.items())


def _settings(cell: Mapping[str, Any], change: Mapping[str, Any]) -> Settings:
    given = {**cell, **{k: v for k, v in change.items() if k not in ("only", "note")}}
    given.pop("label", None)
    try:
        config = TeleportConfig(**given.pop("teleport", {}))
        return Settings.make(given.pop("task", "digits"), **given, teleport=config)
    except TypeError as error:
        msg = f"invalid grid: {error}; allowed: settings of nullport compare"
        raise ValueError(msg) from error
