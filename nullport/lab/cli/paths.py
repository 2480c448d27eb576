"""Files that a command will write: checked before the work, not after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nullport.lab.cli.errors import UsageError


def writable(name: str, what: str, suffixes: tuple[str, ...] = ()) -> Path:
    """Return a path that can be written to; nothing of what is there is changed.

    Args:
        name: A file, there or not, in a folder that is there. Links are followed.
        what: The option that names it.
        suffixes: Suffixes that it may have; any if none are given.

    Raises:
        UsageError: If it is a folder, its own folder is missing or takes no files, or the file
            must not be written to.
    """
    path, target = Path(name), Path(os.path.realpath(name))
    if suffixes and path.suffix.lower() not in suffixes:
        _refuse(name, what, "", f"FILE{' or FILE'.join(suffixes)} in an existing folder")
    if target.is_dir():
        _refuse(name, what, "is a folder")
    if not target.parent.is_dir():
        _refuse(name, what, f"no folder {str(target.parent)!r}")
    if target.exists() and not os.access(target, os.W_OK):
        _refuse(name, what, "is protected")
    if not target.exists() or target.is_file():  # it is replaced by a file that is made beside it
        try:
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            _refuse(name, what, error.strerror or str(error))
    return path


def _refuse(name: str, what: str, why: str, allowed: str = "a file that can be written") -> None:
    said = f" ({why})" if why else ""
    msg = f"invalid {what}: {name!r}{said}; allowed: {allowed}"
    raise UsageError(msg)
