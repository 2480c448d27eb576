"""What a user names on the command line or in a grid: ``FILE.py:NAME``, or a registered name.

:func:`named` imports a thing to be used at once. :class:`Named` stands for a function in a record
of settings, where text has to do: it is compared, pickled and written to JSON by its name. An
installed package registers things under short names, as entry points of the groups of
:data:`GROUPS`; :func:`known_as` finds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nullport.lab.imports import BadTarget, imported, imports_from, module_of, no_such, split

__all__ = ["GROUPS", "BadTarget", "Named", "known_as", "named", "registered"]

GROUPS: dict[str, str] = {
    "objective": "nullport.objectives",
    "projection": "nullport.projections",
    "every": "nullport.schedules",
    "method": "nullport.methods",
    "task": "nullport.tasks",
    "model": "nullport.networks",
}
"""Groups of entry points, by the setting whose values they name."""


def known_as(setting: str, text: str) -> Named | None:
    """Return the function that a setting names, None if it is neither in a file nor registered.

    Args:
        setting: One of ``GROUPS``; under another nothing is registered.
        text: ``FILE.py:NAME``, ``MODULE:NAME``, or the name of an entry point.

    Raises:
        BadTarget: If the name is claimed by more than one package.

    >>> known_as("every", "own.py:when"), known_as("every", "often")
    ('own.py:when', None)
    """
    if ":" in text:
        return Named(text)
    found = entry_points(group=GROUPS[setting], name=text) if setting in GROUPS else ()
    values = sorted({f"{entry.module}:{entry.attr}" for entry in found})
    if len(values) > 1:
        msg = f"invalid {setting}: {text!r} is claimed by {' and '.join(values)}; allowed: one"
        raise BadTarget(msg)
    return Named(values[0]) if values else None


def registered(setting: str) -> list[str]:
    """Return the names that installed packages have registered for a setting."""
    return sorted({entry.name for entry in entry_points(group=GROUPS[setting])})


@contextlib.contextmanager
def named(target: str) -> Iterator[Callable[..., Any]]:
    """Import a function by name; inside, its file can import its neighbours as a script could.

    Args:
        target: ``FILE.py:FUNCTION``, or ``MODULE:FUNCTION`` of an installed module.

    Yields:
        The function.

    Raises:
        BadTarget: If there is no such file, module or function; what the file itself raises passes
            through.
    """
    file, name = split(target)
    folder = Path(file).resolve().parent if file.endswith(".py") else Path.cwd()
    with imports_from(folder):
        found = imported(target)
        if not callable(found):
            raise no_such(name, module_of(file), file)
        yield found


@dataclass(frozen=True, repr=False)
class Named:
    """A function by its name; it is imported when it is first called, once in a process.

    Attributes:
        target: ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.

    Raises:
        BadTarget: If the name is neither.

    >>> Named("operator:neg")(3)
    -3
    """

    target: str

    def __post_init__(self) -> None:
        """Check the form."""
        split(self.target)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self.imported()(*arguments, **options)

    def __repr__(self) -> str:
        """Return the name as text in quotation marks, for messages."""
        return repr(self.target)

    def __str__(self) -> str:
        """Return the name."""
        return self.target

    def imported(self) -> Callable[..., Any]:
        """Return the function.

        Raises:
            BadTarget: As :func:`named`.
        """
        return _imported(self.target, Path.cwd())


@cache
def _imported(target: str, folder: Path) -> Callable[..., Any]:  # noqa: ARG001 - a relative path is of a folder
    with named(target) as function:
        return function
