"""Other people's training loops on two processes: replicas stay equal, and a run resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.installed import installed
from torch_adapter.launched import EVERY, HALF, KINDS, STEPS

HERE = Path(__file__).parent
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
PLAIN = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
PORT = ("--main_process_port", "0")

pytestmark = pytest.mark.skipif(
    not all(map(installed, ("accelerate", "lightning", "transformers"))),
    reason="accelerate, lightning or transformers is not installed",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found: all kinds in the same two, for they take long to start."""
    folder = tmp_path_factory.mktemp("launched")
    program = [sys.executable, *LAUNCH, *PLAIN, *PORT, str(HERE / "launched.py"), str(folder)]
    paths = [str(HERE.parent), *sys.path]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(program, env=settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_stay_equal_to_the_bit(kind: str, found: Any) -> None:
    one, two = (rank[kind] for rank in found)
    assert one["apart"] == two["apart"] == 0
    assert one["losses"] == two["losses"]  # of all samples
    assert one["steps"] == two["steps"] == list(range(EVERY, STEPS, EVERY))
    assert one["accepted"] >= 1
    assert one["said"] == two["said"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_to_the_bit(kind: str, found: Any) -> None:
    """Each process with the batches that it has kept: the first teleport is judged by them."""
    for rank in found:
        assert rank[kind]["resumed steps"] == list(range(HALF, STEPS, EVERY))
        assert rank[kind]["resumed"] == 0


def test_weights_in_parts_train_as_replicas_do(found: Any) -> None:
    whole, parts = (found[0][kind] for kind in ("accelerate", "fsdp2"))
    assert (whole["sharded"], parts["sharded"]) == (False, True)
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-3)
