"""Importing what a user names, ``FILE.py:NAME`` or ``MODULE:NAME``, and telling whose file it is.

A file is imported once in a process, whatever is named in it, so that what it declares is declared
once. Its neighbours can be imported from it as from a script.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_FILES: set[Path] = set()
"""Files that were imported because they were named."""


class BadTarget(ValueError):  # noqa: N818
    """A name that stands for nothing of the kind; the message says what is allowed."""


def imported(target: str) -> Any:
    """Return whatever a name stands for.

    Raises:
        BadTarget: If there is no such file, module or name.
    """
    file, name = split(target)
    module = found = module_of(file)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise no_such(name, module, file) from None
    return found


def imported_from(file: str) -> bool:
    """Tell whether a file was named, or lies beside or below one: then it is the user's own."""
    path = Path(file).resolve()
    if path in _FILES:
        return True
    return any(path.is_relative_to(own.parent) for own in _FILES) and not any(
        path.is_relative_to(other) for other in _others()
    )


def _others() -> Iterator[Path]:
    """Yield the folders of Python, of what is installed, and of nullport's packages."""
    yield from (Path(path).resolve() for path in sysconfig.get_paths().values())
    for name, module in list(sys.modules.items()):
        if name.startswith("nullport") and "." not in name and getattr(module, "__file__", None):
            yield Path(str(module.__file__)).resolve().parent


def split(target: str) -> tuple[str, str]:
    """Return file or module, and name.

    Raises:
        BadTarget: If the target has not this form.
    """
    file, _, name = target.rpartition(":")
    if not file or not all(part.isidentifier() for part in name.split(".")):
        msg = f"invalid target: {target!r}; allowed: FILE.py:FUNCTION"
        raise BadTarget(msg)
    return file, name


def module_of(file: str) -> ModuleType:
    """Import a file or a module.

    Raises:
        BadTarget: If there is none; what it raises itself passes through.
    """
    path = Path(file).resolve()
    if path.suffix != ".py":
        return _module(file)
    if not path.is_file():
        msg = f"no such file: {file!r}; allowed: an existing Python file, as in FILE.py:FUNCTION"
        raise BadTarget(msg)
    _FILES.add(path)
    with imports_from(path.parent):
        status = path.stat()
        return _file(path, status.st_mtime_ns, status.st_size)


@cache
def _file(path: Path, changed: int, size: int) -> ModuleType:  # noqa: ARG001 - a file may change
    """Import a file, once for everything in it: what it declares is declared once."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    try:
        _remember(name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        msg = f"no such file or module: {name!r}; allowed: FILE.py:FUNCTION or MODULE:FUNCTION"
        raise BadTarget(msg) from error


def _remember(module: str) -> None:
    """Count the file of a module as the user's own, unless it is Python's or nullport's."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top.startswith("nullport"):
        return
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        _FILES.add(Path(spec.origin).resolve())


def no_such(name: str, module: ModuleType, file: str) -> BadTarget:
    """Return the error for a name that stands for no function."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    functions = ", ".join(n for n in own if callable(vars(module)[n])) or "none"
    where = Path(file).name if file.endswith(".py") else file
    return BadTarget(f"no such function in {where}: {name!r}; its functions: {functions}")


@contextlib.contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Let imports find the modules of a folder inside."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
