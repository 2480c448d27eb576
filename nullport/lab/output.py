"""Files that are written whole or not at all: every report, picture and table of numbers."""

from __future__ import annotations

import contextlib
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its place, then move it there: an older one stays until then.

    A link is followed. What is no ordinary file, as a pipe or a terminal, is written to directly.

    Args:
        path: The file.
        content: What it is to hold; text is encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; the message names the file, which is as it was.
    """
    target = Path(path).resolve()
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:  # of the temporary file, or of none
        raise OSError(error.errno, error.strerror, str(path)) from error


def save(figure: Any, path: str | Path, **given: Any) -> None:
    """Write a figure of matplotlib, in the format that the suffix names.

    Args:
        figure: The figure.
        path: The file.
        given: Further arguments of ``figure.savefig``.

    Raises:
        OSError: As :func:`write`.
        ValueError: If the format is not known.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:] or None, **given)
    write(path, drawn.getvalue())


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to read it
    os.umask(mask)
    return mask
