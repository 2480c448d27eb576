"""Show versions and backends, and what is missing."""

from __future__ import annotations

import argparse
from typing import Any

from nullport.lab.backends import available_backends, load_backend
from nullport.lab.cli.errors import missing
from nullport.lab.compare.versions import versions
from nullport.lab.named import GROUPS, registered
from nullport.lab.progress import stages


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> Any:
    """Print versions, backends and devices; needs no package beyond nullport's own.

    Returns:
        With ``--json`` the same, as ``{"versions": ..., "backends": ..., "registered": ...}``.
    """
    names, found = available_backends(), {}
    with stages(len(names)) as begin:
        for name in names:
            begin(f"loading {name}")
            found[name] = state(name)
    own = {setting: registered(setting) for setting in GROUPS}
    if arguments.json:
        return {"versions": versions(), "backends": found, "registered": own}
    for name, version in versions().items():
        print(f"{name} {version}")
    for name, one in found.items():
        print(f"backend {name}: {in_words(one)}")
    for setting, known in own.items():
        if known:
            print(f"registered for {setting}: {', '.join(known)}")
    return None


def state(name: str) -> dict[str, Any]:
    """Return a backend's ``versions`` and ``devices``, or as ``error`` why it cannot be loaded."""
    try:
        backend = load_backend(name)
        return {"versions": dict(backend.versions()), "devices": backend.devices()}
    except ModuleNotFoundError as error:
        return {"error": missing(name, error)}
    except Exception as error:  # a broken installation may raise anything; the rest is still shown
        return {"error": f"{type(error).__name__}: {error}"}


def in_words(state: dict[str, Any]) -> str:
    """Return the state of a backend in one line."""
    if "error" in state:
        return f"cannot be loaded, {' '.join(state['error'].split())}"
    found = ", ".join(f"{package} {version}" for package, version in state["versions"].items())
    return f"{found}; devices: {', '.join(state['devices']) or 'none'}"
