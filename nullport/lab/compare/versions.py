"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

from nullport.lab.backends import Backend


def versions(backend: Backend | None = None) -> dict[str, str]:
    """Return the versions of Python, of nullport and what it needs, and of the backend."""
    packages = ("nullport", "numpy", "array-api-compat")
    core = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return core if backend is None else core | dict(backend.versions())
