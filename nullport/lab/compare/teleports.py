"""Settings of teleports as text: functions among them are named, as in ``FILE.py:FUNCTION``.

Such a function takes and returns what :class:`nullport.TeleportConfig` says, in arrays of the
backend. Its name is what is kept: in the files of results, in a key of a run, between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nullport import TeleportConfig
from nullport.lab.compare.named import BadTarget, Named

FUNCTIONS = ("objective", "projection")
"""Fields that may be functions."""


def from_text(given: Mapping[str, Any]) -> TeleportConfig:
    """Return the configuration of these fields; a text with a colon names a function.

    Raises:
        ValueError: If a value is not allowed; the message names both.

    >>> from_text({"objective": "own.py:aim"}).objective
    'own.py:aim'
    """
    return TeleportConfig(**{name: _value(name, value) for name, value in given.items()})


def _value(name: str, value: Any) -> Any:
    named = name in FUNCTIONS and isinstance(value, str) and ":" in value
    return Named(value) if named else value


def as_text(config: TeleportConfig) -> dict[str, Any]:
    """Return the fields by name; functions that have no name of this kind by their own."""
    return {f.name: _text(getattr(config, f.name)) for f in fields(config)}


def _text(value: Any) -> Any:
    if isinstance(value, Named):
        return value.target
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def check_functions(config: TeleportConfig) -> None:
    """Import the functions that are named.

    Raises:
        BadTarget: If there is no such function; the message names the field.
    """
    for name in FUNCTIONS:
        value = getattr(config, name)
        if isinstance(value, Named):
            _check(name, value)


def _check(name: str, function: Named) -> None:
    try:
        function.imported()
    except BadTarget as error:
        msg = f"invalid {name}: {error}"
        raise BadTarget(msg) from error
