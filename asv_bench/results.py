"""Reads the results that asv has saved: one file per machine, commit and environment.

asv keeps the values of a benchmark as one list over the product of its parameters. Here they are a
dict from the values of the parameters to the number.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Saved:
    """The results of one commit on one machine.

    Attributes:
        machine: What asv knows of it.
        commit: The whole hash.
        started: When the last benchmark was started, in seconds since 1970.
        values: By benchmark and its parameters; nothing where it was skipped or failed.
    """

    machine: dict[str, str]
    commit: str
    started: float
    values: dict[str, dict[Key, float]]


def load(folder: Path) -> Iterator[Saved]:
    """Yield all results in a folder of results."""
    for path in sorted(folder.glob("*/*.json")):
        if path.name != "machine.json":
            yield read(path)


def read(path: Path) -> Saved:
    """Return the results in one file."""
    found = json.loads(path.read_text())
    machine = json.loads((path.parent / "machine.json").read_text())
    columns = found["result_columns"]
    rows = {
        name: dict(zip(columns, row, strict=False)) for name, row in found["results"].items() if row
    }
    started = max((row.get("started_at") or 0 for row in rows.values()), default=0) / 1000
    values = {name: by_parameters(row) for name, row in rows.items()}
    return Saved(machine, found["commit_hash"], started, values)


def by_parameters(row: dict[str, Any]) -> dict[Key, float]:
    """Return the numbers of one benchmark."""
    keys = product(*([plain(value) for value in values] for values in row.get("params") or []))
    results = row.get("result") or []
    pairs = zip(keys, results, strict=False)
    return {key: value for key, value in pairs if value is not None and not math.isnan(value)}


def plain(text: str) -> Any:
    """Return the value that a parameter's ``repr`` stands for, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
