"""Settings of teleports as text: functions among them are named, as in ``FILE.py:FUNCTION``.

Such a function takes and returns what :class:`nullport.TeleportConfig` says, in arrays of the
backend. Its name is what is kept: in the files of results, in a key of a run, between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nullport import TeleportConfig
from nullport.lab.named import BadTarget, Named, known_as

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
    hint = get_type_hints(TeleportConfig)[name] if name in FUNCTIONS else None
    own = isinstance(value, str) and hint is not None and value not in _choices(hint)
    return (known_as(name, value) or value) if own else value


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return what a field may be by name."""
    return next(get_args(one) for one in (hint, *get_args(hint)) if get_origin(one) is Literal)


def record_of(config: Any) -> dict[str, Any]:
    """Return the fields of a record of settings by name, functions as :func:`as_text` does."""
    return {f.name: as_text(getattr(config, f.name)) for f in fields(config)}


def as_text(value: Any) -> Any:
    """Return the name of a function, if need be its own; any other value as it is."""
    if isinstance(value, TeleportConfig):
        return record_of(value)
    if isinstance(value, Named):
        return value.target
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def check_functions(config: Any) -> None:
    """Import the functions that are named in a record of settings.

    Raises:
        BadTarget: If there is no such function; the message names the field.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Named):
            try:
                value.imported()
            except BadTarget as error:
                msg = f"invalid {field.name}: {error}"
                raise BadTarget(msg) from error
