"""Fixtures shared by every folder of tests."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from helpers.installed import installed
from hypothesis import HealthCheck, settings

CALM: dict[str, Any] = {
    "deadline": None,
    "print_blob": False,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", derandomize=True, **CALM)
settings.register_profile("fuzz", max_examples=2000, **CALM)
"""Other examples every time, and more: ``HYPOTHESIS_PROFILE=fuzz``, or ``make fuzz``."""
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

collect_ignore_glob = ["helpers/*", "fuzz_*.py"]  # no tests, and some need torch
pytest.register_assert_rewrite("helpers.state", "helpers.torch_oracle")

NAMESPACES = ("array_api_compat.numpy", "array_api_strict", "array_api_compat.torch")


@pytest.fixture(params=NAMESPACES, ids=lambda name: name.rpartition(".")[2])
def xp(request: pytest.FixtureRequest) -> Any:
    """An array API namespace; skipped where its library is not installed."""
    name: str = request.param
    library = name.rpartition(".")[2]
    if not installed(library):
        pytest.skip(f"{library} is not installed")
    return importlib.import_module(name)
