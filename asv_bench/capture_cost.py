"""Print what capturing alone costs in torch, by width, in processor time of one thread.

    python asv_bench/capture_cost.py [--widths 64 512 1024]

The network is the LeakyReLU MLP of ``rivals_table.py``, of four square layers and a head, on 64
random samples; medians of calls in turns. Processor time is free of other work on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from benchmarks.common import medians
from rivals.capture import TORCH

from nullport_torch.lab.baselines.chains import mlp
from nullport_torch.lab.baselines.problem import Problem

SAMPLES = 64


def main(given: Sequence[str] | None = None) -> None:
    """Print a row per width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512, 1024])
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    print("| width | gradient |", " | ".join(TORCH), "|\n" + "| --- " * (len(TORCH) + 2) + "|")
    for width in options.widths:
        model = mlp([width] * 5 + [10], seed=0)
        problem = Problem(model, torch.randn(SAMPLES, width), torch.randint(0, 10, (SAMPLES,)))
        calls = {name: make(problem) for name, make in TORCH.items()}
        here = [call for call in calls.values() if call is not None]
        unit, *found = medians(problem.gradient, *here, repeats=(5, 15), clock=time.process_time)
        costs = iter(found)
        cells = [
            f"{next(costs) / unit:.2f}" if call else "not installed" for call in calls.values()
        ]
        print(f"| {width} | {1e3 * unit:.2f} ms |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
