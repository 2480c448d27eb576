"""What the command line reports in one line instead of a traceback."""

from __future__ import annotations

from nullport.lab.backends import Backend, load_backend


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
        msg = f"backend {name!r} cannot be loaded: {missing(name, error)}"
        raise UsageError(msg) from error
    except (ImportError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def missing(name: str, error: ModuleNotFoundError) -> str:
    """Say which module is missing and what to install."""
    return f'{error.name} is not installed: pip install "nullport[{name}]"'
