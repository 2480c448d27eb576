"""Records of the core as pytrees: numbers are leaves, names are structure."""

from __future__ import annotations

from dataclasses import fields

import jax

from nullport import LayerReport, TeleportReport
from nullport.network import LowRank

_STATIC: dict[type, tuple[str, ...]] = {
    LowRank: (),
    LayerReport: ("name", "kind", "in_features", "samples", "note"),
    TeleportReport: ("tangent",),
}


def register() -> None:
    """Make the records known to JAX, so that they can be traced."""
    for record, static in _STATIC.items():
        numbers = [f.name for f in fields(record) if f.name not in static]
        jax.tree_util.register_dataclass(record, numbers, list(static))
