"""The public names of the array adapter, and what importing it brings along."""

from __future__ import annotations

import subprocess
import sys

import nullport_arrays


def test_public_names() -> None:
    named = {n for n, v in vars(nullport_arrays).items() if not n.startswith("_")} - {
        "lab",
        "layers",
    }
    assert set(nullport_arrays.__all__) == named
    assert list(nullport_arrays.__all__) == sorted(nullport_arrays.__all__, key=_isort)


def _isort(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_imports_numpy_alone() -> None:
    heavy = ["torch", "jax", "cupy", "thinc", "scipy", "sklearn", "threadpoolctl"]
    script = f"import sys, nullport_arrays; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
