"""Skips this folder without JAX, and runs it in double precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.installed import installed

INSTALLED = installed("jax")
collect_ignore_glob = [] if INSTALLED else ["*.py"]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Switch to float64 for one test, and back: other tests may use JAX in float32."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
