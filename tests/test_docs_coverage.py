"""The table of what moves is that of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")

SCRIPT = Path(__file__).parents[1] / "docs" / "_ext" / "coverage.py"


def test_the_table_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("coverage_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python docs/_ext/coverage.py"
