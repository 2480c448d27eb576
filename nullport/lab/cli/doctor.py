"""Show versions and backends, and what is missing."""

from __future__ import annotations

import argparse

from nullport.lab.backends import available_backends, load_backend
from nullport.lab.cli.errors import missing
from nullport.lab.compare.versions import versions


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command: none."""


def run(arguments: argparse.Namespace) -> None:  # noqa: ARG001
    """Print versions, backends and devices; needs no package beyond nullport's own."""
    for name, version in versions().items():
        print(f"{name} {version}")
    for name in available_backends():
        print(f"backend {name}: {state(name)}")


def state(name: str) -> str:
    """Return a backend's versions and devices, or why it cannot be loaded, in one line."""
    try:
        backend = load_backend(name)
        found = ", ".join(f"{package} {version}" for package, version in backend.versions().items())
        return f"{found}; devices: {', '.join(backend.devices())}"
    except ModuleNotFoundError as error:
        return f"cannot be loaded, {missing(name, error)}"
    except Exception as error:  # a broken installation may raise anything; the rest is still shown
        return f"cannot be loaded, {type(error).__name__}: {error}"
