"""Reports as pytrees: numbers are leaves, names are structure, so that they can be traced."""

from __future__ import annotations

from dataclasses import fields

import jax

from nullport._report import LayerReport, TeleportReport

_STATIC = {
    LayerReport: ("name", "kind", "in_features", "samples", "note"),
    TeleportReport: ("tangent",),
}


def register() -> None:
    """Make the records of a teleport known to JAX."""
    for record, static in _STATIC.items():
        numbers = [f.name for f in fields(record) if f.name not in static]
        jax.tree_util.register_dataclass(record, numbers, list(static))
