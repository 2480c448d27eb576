"""The page on Keras: its code runs on both backends and moves dense layers and convolutions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.installed import installed

PAGE = Path(__file__).parents[1] / "docs" / "keras.md"
CHECKS = """
assert report.accepted, report
assert abs(report.loss_after - report.loss_before) < 0.06 * report.loss_before
moved = [row.kind for row in report.layers if row.moved]
assert any("conv" in kind for kind in moved), moved
assert any("conv" not in kind for kind in moved), moved
assert float(loss) < 1.2, float(loss)  # from log 10
"""
OWN_CHECKS = {
    "torch": "assert teleporter.history\nassert fitted.teleporter.history\n",
    "jax": "assert float(cross_entropy(y, model(x))) < 1.2\n",
}


def blocks(title: str) -> list[str]:
    """Return the code before the first title, and that under ``title``."""
    before, *sections = PAGE.read_text("utf-8").split("\n## ")
    (own,) = (section for section in sections if section.startswith(title))
    return re.findall(r"^```python\n(.*?)^```", before + own, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("backend", "title"), [("torch", "On torch"), ("jax", "On JAX")])
def test_the_page_runs(backend: str, title: str) -> None:
    for name in ("keras", "sklearn", backend, *(["optax"] if backend == "jax" else [])):
        if not installed(name):
            pytest.skip(f"{name} is not installed")
    script = "\n".join([*blocks(title), CHECKS, OWN_CHECKS[backend]])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
