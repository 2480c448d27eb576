"""Functions that a user names on the command line or in a grid: ``FILE.py:FUNCTION``.

:func:`named` imports one to be called at once. :class:`Named` stands for one in a record of
settings, where text has to do: it is compared, pickled and written to JSON by its name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


class BadTarget(ValueError):  # noqa: N818
    """A name that stands for no function of the kind; the message says what is allowed."""


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
    file, name = _split(target)
    path = Path(file).resolve()
    if path.suffix == ".py":
        with _imports_from(path.parent):
            yield _function(_file(path, file), name, path.name)
    else:
        yield _function(_module(file), name, file)


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
        _split(self.target)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self.imported()(*arguments)

    def __repr__(self) -> str:
        """Return the name as text in quotation marks, for messages."""
        return repr(self.target)

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


def _split(target: str) -> tuple[str, str]:
    file, _, name = target.rpartition(":")
    if not file or not name.isidentifier():
        msg = f"invalid target: {target!r}; allowed: FILE.py:FUNCTION"
        raise BadTarget(msg)
    return file, name


def _file(path: Path, given: str) -> ModuleType:
    if not path.is_file():
        msg = f"no such file: {given!r}; allowed: an existing Python file, as in FILE.py:FUNCTION"
        raise BadTarget(msg)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        msg = f"no such file or module: {name!r}; allowed: FILE.py:FUNCTION or MODULE:FUNCTION"
        raise BadTarget(msg) from error


def _function(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        own = [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        functions = ", ".join(n for n in own if callable(vars(module)[n])) or "none"
        msg = f"no such function in {where}: {name!r}; its functions: {functions}"
        raise BadTarget(msg)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
