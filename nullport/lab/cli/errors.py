"""What the command line reports in one line instead of a traceback, and where it happened."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from nullport.lab.backends import Backend, load_backend
from nullport.lab.imports import imported_from

LONGEST = 300
"""Characters that are shown of a message which is not nullport's."""


class UsageError(Exception):
    """Something the user can put right; the message names the value and what is allowed."""


def backend_or_error(name: str) -> Backend:
    """Load a backend.

    Raises:
        UsageError: If its name is unknown or its framework is not installed.
    """
    try:
        return load_backend(name)
    except ModuleNotFoundError as error:
        if place(error):  # of a file of the user's
            raise
        msg = f"backend {name!r} cannot be loaded: {missing(name, error)}"
        raise UsageError(msg) from error
    except (ImportError, ValueError, TypeError) as error:
        if place(error):
            raise
        raise UsageError(str(error)) from error


def missing(name: str, error: ModuleNotFoundError) -> str:
    """Say which module is missing and what to install."""
    return f'{error.name} is not installed: pip install "nullport[{name}]"'


def told(error: BaseException) -> str | None:
    """Return an error in one line, with the place if it is in a file of the user's.

    None if it is no error of usage and not in such a file: then it is nullport's own.
    """
    where = place(error)
    if isinstance(error, UsageError):
        text = str(error)
        placed = where and re.search(re.escape(where.partition(":")[0]) + r":\d", text)
        return f"{where}: {text}" if where and not placed else text
    if where is None:
        return None
    message = " ".join(str(error).split())
    short = message if len(message) <= LONGEST else message[:LONGEST] + " …"
    name = "exits with" if isinstance(error, SystemExit) else f"{type(error).__name__}:"
    return f"{where}: {name} {short}".rstrip(": ")


def place(error: BaseException) -> str | None:
    """Return ``FILE:LINE`` of the innermost line in a file of the user's, if there is one.

    Such a file was named on the command line or in a grid, or lies beside one that was.
    """
    for one in _chain(error):
        if isinstance(one, SyntaxError) and one.filename and imported_from(one.filename):
            return f"{_shown(one.filename)}:{one.lineno}"
        lines = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(one.__traceback__)
            if imported_from(frame.f_code.co_filename)
        ]
        lines += _in_other_process(one)
        if lines:
            return f"{_shown(lines[-1][0])}:{lines[-1][1]}"
    return None


def _in_other_process(error: BaseException) -> list[tuple[str, int]]:
    """Return the user's lines in the traceback of another process, which is kept as text."""
    text = getattr(error, "tb", None)
    found = re.findall(r'File "([^"]+)", line (\d+)', text) if isinstance(text, str) else []
    return [(file, int(line)) for file, line in found if imported_from(file)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error comes from, the cause before what it caused."""
    if error.__cause__ is not None:
        yield from _chain(error.__cause__)
    yield error


def _shown(file: str) -> str:
    """Return a path relative to the present folder, if it is below it."""
    path = Path(file).resolve()
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
