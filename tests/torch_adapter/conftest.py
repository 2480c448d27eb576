"""Skips this folder without torch, and silences one warning that torch gives about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.installed import installed

INSTALLED = installed("torch")
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

# torch's forward-mode AD calls its own deprecated torch.jit.script on first use.
OWN_WARNING = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"

if INSTALLED:
    import torch

    torch.set_num_threads(1)  # the networks are tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Filter that one message in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(OWN_WARNING))
