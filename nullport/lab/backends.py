"""Finding adapters without importing them: the entry-point group ``nullport.backends``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nullport.lab.imports import imported
from nullport.network import LayerGraph

GROUP = "nullport.backends"


@dataclass(frozen=True)
class Backend:
    """What an adapter registers under its entry point.

    Attributes:
        name: Name of the framework.
        versions: Returns the versions of the packages it stands on.
        devices: Returns the devices it can use now.
        inspect: Lists what a teleport would find at every weight; takes what the user's function
            returned and a configuration.
        trainer: Makes the training loop of ``nullport compare``, or None if there is none.
        methods: Names of other teleports than nullport's that the trainer can make.
        graph: Makes a :class:`nullport.network.LayerGraph` of what the user's function returned,
            or None if there is none.
        only: Values of settings that its built-in networks have, by name of the setting, where
            these are not all.
    """

    name: str
    versions: Callable[[], Mapping[str, str]]
    devices: Callable[[], list[str]]
    inspect: Callable[..., Any]
    trainer: Callable[..., Any] | None = field(default=None)
    methods: tuple[str, ...] = ()
    graph: Callable[[object], LayerGraph] | None = field(default=None)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _claims() -> dict[str, list[EntryPoint]]:
    claims: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        known = claims.setdefault(entry.name, [])
        if entry not in known:
            known.append(entry)
    return claims


def available_backends() -> list[str]:
    """Return the names of all registered adapters, without importing any.

    An adapter is listed when its package is installed; its framework may still be missing.
    """
    return sorted(_claims())


def load_backend(name: str) -> Backend:
    """Import the adapter registered under ``name``, or the one that ``FILE.py:NAME`` names.

    Raises:
        ValueError: If the name is unknown, or claimed by more than one package.
        TypeError: If what is registered is not a ``Backend``.
        ImportError: If the framework is not installed.
    """
    if ":" in name:
        return _backend(imported(name), name)
    claims = _claims()
    if name not in claims:
        msg = f"unknown backend {name!r}; available: {', '.join(sorted(claims)) or 'none'}"
        raise ValueError(msg)
    values = sorted({entry.value for entry in claims[name]})
    if len(values) > 1:
        msg = f"backend {name!r} is claimed by more than one package: {', '.join(values)}"
        raise ValueError(msg)
    return _backend(claims[name][0].load(), f"{name!r} ({values[0]})")


def _backend(found: object, name: str) -> Backend:
    if not isinstance(found, Backend):
        msg = f"backend {name} is a {type(found).__name__}, not a Backend"
        raise TypeError(msg)
    return found


def known_methods() -> set[str] | None:
    """Return the names of the methods that any backend has; None if one cannot be imported."""
    try:
        return {name for backend in available_backends() for name in load_backend(backend).methods}
    except ImportError:
        return None
