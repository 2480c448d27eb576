"""Replicas inside pmap and shard_map, and explicit meshes: the teleport of the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from nullport._report import Cause

PROGRAM = Path(__file__).with_name("replicated.py")
REPLICAS = (
    "pmap averaged", "pmap normalised", "pmap look_ahead", "shard_map local", "shard_map averaged",
    "shard_map normalised", "shard_map look_ahead", "unchecked averaged", "two axes averaged",
)  # fmt: skip
EXPLICIT = ("jit", "rows", "eager", "said", "said, teleporting")
TRAINING = ("pmap", "unchecked", "explicit", "automatic")
TRIES = 4

pytestmark = [
    pytest.mark.skipif(
        not hasattr(jax.sharding, "auto_axes"), reason="this JAX has no explicit axes"
    ),
    pytest.mark.skipif(
        "NULLPORT_SLOW" not in os.environ, reason="takes 10 minutes: make test-slow"
    ),
]


def _run(devices: int) -> dict[str, Any]:
    """Run the program; see ``test_sharding.py`` for the flags."""
    roots = [str(PROGRAM.parents[2]), str(PROGRAM.parents[2] / "backends")]
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",  # of little programs, most of the time is compilation
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(2 * devices),
        "PYTHONPATH": os.pathsep.join(roots),
    }
    for _ in range(TRIES):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(devices)],
            capture_output=True,
            text=True,
            env=os.environ | flags,
            timeout=1800,  # only a hang takes so long, however busy the machine
        )
        if done.returncode == 0 or "rendezvous" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return _run(4)


def _check(row: dict[str, Any]) -> None:
    assert row["accepted"]
    assert row["moved"] >= 1
    assert row["error"] <= 1e-10
    assert row["report"] <= 1e-8
    assert row.get("apart", 0) == 0
    assert row.get("kept", True), "the sharding has changed"


@pytest.mark.parametrize("case", REPLICAS)
def test_replicas_make_the_teleport_of_one_device(case: str, found: dict[str, Any]) -> None:
    _check(found[case])


@pytest.mark.parametrize("case", EXPLICIT)
def test_explicit_meshes(case: str, found: dict[str, Any]) -> None:
    _check(found[f"explicit {case}"])


@pytest.mark.parametrize("case", TRAINING)
def test_training_is_that_of_one_device(case: str, found: dict[str, Any]) -> None:
    """Fifty steps; parameters and state are donated where that is possible."""
    row = found[f"training {case}"]
    assert row["apart"] == 0
    assert row["accepted"] == row["expected"] >= 1
    assert row["error"] <= 1e-6


def test_what_is_not_known_is_refused(found: dict[str, Any]) -> None:
    row = found["refused"]
    assert set(row["cause"]) == {Cause.APART}
    assert row["same"]
    assert "psum over the axis 'd'" in row["missing"]
    assert "axis_name='d'" in row["missing"]
    assert "axis_name='e'" in row["other"]
    assert "axis_name='d'" in row["nowhere"]


def test_eight_devices() -> None:
    for row in _run(8).values():
        _check(row)
