"""Records of runs as JSONL and CSV.

A file of runs whose name ends in ``.jsonl`` is a view of the store that lies beside it: its records
are taken in, those of an older nullport too, and it is written whole when a suite ends.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nullport.lab.output import write
from nullport.lab.suite.store import Record, Store

FORMATS = (".jsonl", ".csv")
"""Suffixes of files that records are written to."""

TABLES = ("settings", "versions")
"""Entries of a record whose entries are columns of a CSV file."""

APART = ("key", "curve")
"""Entries of a record that a CSV file leaves out."""


def store_of(runs: Path) -> Path:
    """Return the file of the store: of a JSONL file the one beside it.

    >>> store_of(Path("runs.jsonl")).name
    'runs.sqlite'
    """
    return runs.with_suffix(".sqlite") if runs.suffix == ".jsonl" else runs


def take_in(runs: Path, store: Store) -> None:
    """Add the records of a JSONL file to its store; those that are there stay.

    Raises:
        ValueError: As :func:`read_jsonl`.
    """
    if runs.suffix == ".jsonl" and runs.exists():
        store.add(read_jsonl(runs))


def give_out(store: Store, runs: Path) -> None:
    """Write a JSONL file whole from its store.

    Raises:
        OSError: If it cannot be written.
    """
    if runs.suffix == ".jsonl" and (runs.exists() or store.keys()):
        export(store.records(), runs)


def read_jsonl(path: Path) -> list[Record]:
    """Return the records of a JSONL file; a last line that was cut off is none.

    Raises:
        ValueError: If it holds anything else; the message names file and line.
    """
    content = path.read_bytes()
    *whole, rest = content.split(b"\n")
    lines = (whole or [rest]) if content else []  # a single line that was cut off is nobody's
    return [_parsed(line, f"line {i} of {path}") for i, line in enumerate(lines, 1)]


def _parsed(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            msg = "no key of a run"
            raise ValueError(msg)
    except ValueError as error:
        msg = f"invalid runs: {where}: {error}; allowed: what nullport suite wrote"
        raise ValueError(msg) from error
    return record


def export(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write records to a file, in the format that its suffix names.

    Raises:
        ValueError: If that is none of ``FORMATS``.
        OSError: If the file cannot be written.
    """
    write(path, text(records, path.suffix))


def text(records: Iterable[Mapping[str, Any]], suffix: str) -> str:
    """Return records as JSONL, or as CSV: a line per run, a column per value but the curve's.

    Raises:
        ValueError: If the suffix is none of ``FORMATS``.

    >>> key = '["baseline", 0, {}]'
    >>> print(text([{"key": key, "seed": 0, "settings": {"lr": 0.1}}], ".csv"), end="")
    arm,seed,settings.lr
    baseline,0,0.1
    """
    if suffix not in FORMATS:
        msg = f"invalid file: {suffix!r}; allowed: {', '.join(FORMATS)}"
        raise ValueError(msg)
    if suffix == ".jsonl":
        return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    rows = [dict(_columns(record)) for record in records]
    sheet = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sheet, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sheet.getvalue()


def _columns(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "arm", json.loads(record["key"])[0]
    for name, value in record.items():
        if name in TABLES:
            yield from ((f"{name}.{entry}", _single(part)) for entry, part in value.items())
        elif name not in APART:
            yield name, _single(value)


def _single(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
