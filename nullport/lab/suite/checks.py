"""What a grid may hold: sections, their entries, and the cells that ``only`` picks.

Settings themselves are checked where they are made, by :class:`nullport.lab.compare.Settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

from nullport.lab.compare import Settings

SECTIONS: dict[str, tuple[str, ...] | None] = {
    "defaults": None,
    "tune": ("seeds",),
    "rates": None,
    "cells": None,
    "methods": None,
    "sensitivity": ("seeds", "include", "exclude", "only"),
    "connectivity": ("seeds", "only"),
}
"""Sections of a grid, with their entries where only these are allowed."""

BASELINE = "baseline"
"""Name of the method that does not teleport."""

_PICKED = (*(f.name for f in fields(Settings)), "label")


def check(record: Mapping[str, Any], file: str) -> None:
    """Check what a grid's file holds.

    Raises:
        ValueError: If it is not allowed; the message names it and the file.
    """
    unknown = set(record) - set(SECTIONS)
    if unknown or not record.get("cells"):
        found = ", ".join(sorted(unknown)) or "no cells"
        _refuse(found, file, f"{', '.join(SECTIONS)}, and at least one cell")
    for name in ("sensitivity", "connectivity"):
        if name in record and "tune" not in record:
            _refuse(f"[{name}] without [tune]", file, "with it")
    for name, allowed in SECTIONS.items():
        if allowed is not None and name in record:
            _known(record[name], allowed, f"[{name}]", file)
    methods = record.get("methods", {})
    if BASELINE in methods:
        _refuse(f"a method {BASELINE!r}", file, "any other name, it is that of no teleports")
    for part in (*methods.values(), record.get("sensitivity", {}), record.get("connectivity", {})):
        _known(part.get("only", {}), _PICKED, "only", file)


def _known(part: Any, allowed: Iterable[str], where: str, file: str) -> None:
    unknown = sorted(set(part) - set(allowed)) if isinstance(part, Mapping) else [repr(part)]
    if unknown:
        _refuse(f"{', '.join(unknown)} of {where}", file, ", ".join(allowed))


def _refuse(found: str, file: str, allowed: str) -> NoReturn:
    msg = f"invalid grid: {found} in {file}; allowed: {allowed}"
    raise ValueError(msg)
