"""Puts the comparison of rivals, outside the package, on the path; skips this without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.installed import installed

INSTALLED = installed("torch")
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

# torch's forward-mode AD calls its own deprecated torch.jit.script on first use.
OWN_WARNING = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"

sys.path.insert(0, str(Path(__file__).parents[2] / "asv_bench"))

if INSTALLED:
    import torch

    torch.set_num_threads(1)  # the networks are tiny

    from nullport_torch.lab.baselines.chains import mlp
    from nullport_torch.lab.baselines.problem import Problem


@pytest.fixture
def problem() -> Problem:
    """A LeakyReLU MLP 20-24-24-24-5 in float64 on 8 samples, weights twice the usual."""
    model = mlp([20, 24, 24, 24, 5], dtype=torch.float64)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(8, 20, generator=random, dtype=torch.float64)
    found = Problem(model, x, torch.arange(8) * 7 % 5)
    found.assign([2 * w for w in found.values()])
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Filter that one message in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(OWN_WARNING))
