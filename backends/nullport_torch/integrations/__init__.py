"""Teleports inside other people's training loops; no library is imported before it is needed.

- ``LightningCallback``: a callback of Lightning's ``Trainer`` (``nullport[lightning]``).
- ``TeleportMixin``, ``TeleportingTrainer``: for Hugging Face's ``Trainer``
  (``nullport[transformers]``).
- ``AcceleratedTeleporter``: for loops with ``accelerate`` (``nullport[accelerate]``).
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AcceleratedTeleporter": "_accelerate",
    "LightningCallback": "_lightning",
    "TeleportMixin": "_transformers",
    "TeleportingTrainer": "_transformers",
}

__all__ = ["AcceleratedTeleporter", "LightningCallback", "TeleportMixin", "TeleportingTrainer"]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
