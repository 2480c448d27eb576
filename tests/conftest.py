"""Fixtures shared by every folder of tests."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("quick")

collect_ignore_glob = ["helpers/*"]  # no tests, and some need torch
pytest.register_assert_rewrite("helpers")

NAMESPACES = ("array_api_compat.numpy", "array_api_strict", "array_api_compat.torch")


@pytest.fixture(params=NAMESPACES, ids=lambda name: name.rpartition(".")[2])
def xp(request: pytest.FixtureRequest) -> Any:
    """An array API namespace; skipped where its library is not installed."""
    name: str = request.param
    pytest.importorskip("torch.nn" if name.endswith("torch") else name.rpartition(".")[2])
    return importlib.import_module(name)
