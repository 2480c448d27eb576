"""Whether a package is installed, without importing it."""

from __future__ import annotations

from importlib.util import find_spec


def installed(name: str) -> bool:
    """Tell whether ``name`` is a regular package, not just a folder of that name."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
