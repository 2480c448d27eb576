"""Parameters and batches spread over four devices: the same teleport, and spread as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("sharded.py")
CASES = [
    f"{layout}, {samples} samples, {way}"
    for layout in ("replicated", "tensor parallel", "FSDP")
    for samples, way in ((16, "jit"), (16, "eager"), (120, "jit"))  # eager is slow
]


TRIES = 4


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Run the program once, on four devices of the CPU."""
    roots = [str(PROGRAM.parents[2]), str(PROGRAM.parents[2] / "backends")]
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": "8",  # threads: of as few as processors, collectives may hold them all
        "PYTHONPATH": os.pathsep.join(roots),
    }
    for _ in range(TRIES):
        done = _run(flags)
        # With more devices than processors XLA's collectives may wait for each other for ever; XLA
        # then ends the process, which says nothing of the teleport.
        if done.returncode == 0 or "rendezvous" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def _run(flags: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        env=os.environ | flags,
        timeout=1200,  # only a hang takes so long, however busy the machine
    )


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_teleport_is_the_same_teleport(case: str, found: dict[str, Any]) -> None:
    row = found[case]
    assert row["devices"] == 4
    assert row["accepted"]
    assert row["kept"], "the sharding has changed"
    assert row["error"] <= 1e-12
    assert sum(moved > 0.01 for moved in row["moved"]) >= 2
    assert row["moved"] == pytest.approx(row["expected"], rel=1e-10)
    if "16 samples" in case:
        assert abs(row["rise"]) <= 1e-12
