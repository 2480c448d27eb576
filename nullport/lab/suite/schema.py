"""What a grid's file may hold: sections, entries, types and values, checked by pydantic.

The types of settings are those of :class:`nullport.lab.compare.Settings`, where those are checked
that depend on each other, and :class:`nullport.TeleportConfig` checks its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from nullport import TeleportConfig
from nullport.lab.compare import Settings
from nullport.lab.compare.extras import require
from nullport.lab.compare.settings import OptimizerName
from nullport.lab.compare.teleports import from_text
from nullport.lab.named import GROUPS, registered

OWN = "Value error, "
"""What pydantic puts before the messages of nullport's own checks."""

WORDS = {
    "dictionary or instance of table": "table",
    "dictionary": "table",
    "Field required": "at least one table",
}
"""Words of pydantic in those of TOML."""

BASELINE = "baseline"
"""Name of the method that does not teleport."""

FUNCTION = "FILE.py:FUNCTION"
"""How a function is named."""

WHOLE = ("include", "exclude", "at")
"""Settings that are lists themselves, and not multiplied out."""


def check(record: Mapping[str, Any], file: str) -> None:
    """Check what a grid's file holds.

    Raises:
        ValueError: If anything is not allowed; the message names the first such entry, by its path
            in the file, its value, and what is allowed.
        MissingExtra: If pydantic is not installed.
    """
    pydantic = require("pydantic")
    try:
        _grid().model_validate(record)
    except pydantic.ValidationError as error:
        raise ValueError(_explained(record, error.errors(), file)) from error
    for name in ("sensitivity", "connectivity"):
        if name in record and "tune" not in record:
            msg = f"invalid grid: [{name}] without [tune] in {file}; allowed: with it"
            raise ValueError(msg)
    if BASELINE in record.get("methods", {}):
        msg = f"invalid grid: a method {BASELINE!r} in {file}; allowed: any other name, "
        raise ValueError(msg + "it is that of no teleports")


def product(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Multiply out the lists of an entry, but for settings that are lists themselves."""
    values: Sequence[list[Any]] = [
        v if isinstance(v, list) and name not in WHOLE else [v] for name, v in entry.items()
    ]
    for combination in itertools.product(*values):
        yield dict(zip(entry, combination, strict=True))


@cache
def _grid() -> Any:
    """Return the model of a whole file."""
    single = _hints()
    listed = {n: hint if n in WHOLE else _several(hint) for n, hint in single.items()}
    listed["label"] = _several(str)
    only, cell, count, rate = _table(listed), _table(listed), single["seeds"], single["lr"]
    method = _table({**single, "only": only, "note": str})
    patterns, filled = list[list[str]], require("pydantic").Field(min_length=1)
    parts = {
        "defaults": cell,
        "tune": _table({"seeds": count}),
        "rates": dict[OptimizerName, Annotated[list[rate], filled]],  # type: ignore[valid-type]
        "cells": Annotated[list[cell], filled],  # type: ignore[valid-type]
        "methods": dict[str, method],  # type: ignore[valid-type]
        "sensitivity": _table(
            {"seeds": count, "include": patterns, "exclude": patterns, "only": only}
        ),
        "connectivity": _table({"seeds": count, "only": only}),
    }
    return _table(parts, needed=("cells",))


def _hints() -> dict[str, Any]:
    """Return the types of all settings, as a file has them."""
    pydantic = require("pydantic")
    hints = {name: _in_file(hint) for name, hint in get_type_hints(Settings).items()}
    hints["at"] = list[_in_file(int)]  # type: ignore[misc]
    hints["options"] = dict[str, Any]
    hints["teleport"] = Annotated[dict[str, Any], pydantic.AfterValidator(_teleport)]
    return hints


def _in_file(hint: Any) -> Any:
    """Return the type of a setting in a file: functions are named, numbers are positive."""
    pydantic = require("pydantic")
    if hint is int:
        return Annotated[int, pydantic.Field(ge=1)]
    if hint is float:
        return Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    if get_origin(hint) is get_origin(Callable[[], None]):
        return Annotated[str, pydantic.AfterValidator(_function)]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_in_file, get_args(hint)))]  # noqa: UP007 - made at run time
    return hint


def _function(text: str) -> str:
    """Check the name of a function; whether there is one shows when it is imported."""
    if ":" not in text and not any(text in registered(setting) for setting in GROUPS):
        raise ValueError(FUNCTION)
    return text


def _several(hint: Any) -> Any:
    """Return the type of a value or a list of them."""
    pydantic = require("pydantic")
    as_list = pydantic.BeforeValidator(lambda v: v if isinstance(v, list) else [v])
    return Annotated[list[hint], pydantic.Field(min_length=1), as_list]


def _table(parts: Mapping[str, Any], needed: Sequence[str] = ()) -> Any:
    """Return the model of a table that may have these entries, and must have some of them."""
    pydantic = require("pydantic")

    def known(given: Any) -> Any:
        unknown = [name for name in given if name not in parts] if isinstance(given, dict) else []
        if unknown:
            msg = f"{', '.join(unknown)} is not known; allowed: {', '.join(parts)}"
            raise ValueError(msg)
        return given

    return pydantic.create_model(
        "table",
        __config__={"strict": True, "protected_namespaces": ()},
        __validators__={"known": pydantic.model_validator(mode="before")(known)},
        **{name: (hint, ... if name in needed else None) for name, hint in parts.items()},
    )


def _teleport(given: dict[str, Any]) -> dict[str, Any]:
    """Check the settings of teleports, lists multiplied out."""
    allowed = [f.name for f in fields(TeleportConfig)]
    for name in given:
        if name not in allowed:
            msg = f"{name!r} is no setting of teleports; allowed: {', '.join(allowed)}"
            raise ValueError(msg)
    try:
        for chosen in product(given):
            from_text(chosen)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return given


def _explained(record: Any, errors: Sequence[Mapping[str, Any]], file: str) -> str:
    """Say in one line where the first mistake is; what alternatives say of it is put together."""
    places = [_place(record, error["loc"]) for error in errors]
    path, value = places[0]
    mine = [e["msg"] for e, place in zip(errors, places, strict=True) if place[0] == path]
    if mine[0].startswith(OWN):
        said = mine[0].removeprefix(OWN)
    else:
        words = dict.fromkeys(
            text.removeprefix("Input should be ").removeprefix(OWN) for text in mine
        )
        allowed = " or ".join(words)
        for theirs, ours in WORDS.items():
            allowed = allowed.replace(theirs, ours)
        said = f"{value}; allowed: {allowed}"
    more = len({place[0] for place in places}) - 1
    rest = f" (and {more} more)" if more else ""
    return f"invalid grid: {path} of {file}: {said}{rest}".replace("\n", " ")


def _place(record: Any, location: Sequence[str | int]) -> tuple[str, str]:
    """Return the path of an entry, as far as it is in the file, and its value, shortened."""
    path, here = "", record
    for part in location:
        if isinstance(part, str) and isinstance(here, Mapping) and part in here:
            path, here = f"{path}.{part}", here[part]
        elif isinstance(part, int) and isinstance(here, list) and part < len(here):
            path, here = f"{path}[{part}]", here[part]
    if not path:
        return ".".join(map(str, location)) or "the table", "none"
    text = repr(here)
    return path[1:], text if len(text) < 60 else f"{text[:57]}..."
