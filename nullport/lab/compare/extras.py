"""Optional packages, imported where they are used and named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):  # noqa: N818
    """A package of the extra ``cli`` or ``cluster`` is not installed."""


def require(module: str, extra: str = "cli") -> Any:
    """Import a module of a package that only the command line needs.

    Args:
        module: The module.
        extra: The extra that installs its package.

    Raises:
        MissingExtra: If the package is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there, something else is broken
        msg = f'{package} is not installed: pip install "nullport[{extra}]"'
        raise MissingExtra(msg) from error
