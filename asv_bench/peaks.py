"""Extra peak memory of a teleport over a training step, weights and optimizer state included.

Torch tells of every allocation through its profiler, NumPy through tracemalloc, JAX's compiler of
what a compiled function holds at most.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from benchmarks.common import Size
from benchmarks.networks import Network, network
from benchmarks.places import torch

STATE = {"sgd": 0, "momentum": 1, "adam": 2}
"""Arrays of the size of the weights that an optimizer keeps."""

CASES = (("momentum", 4096), ("momentum", 1024), ("adam", 64))
"""Optimizer and samples; all of width 1024 and depth 8."""

MIB = 2**20


def peak(function: Callable[[], object]) -> float:
    """Return the largest number of MiB that torch's allocator held more than at the start."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as recorded:
        function()
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    live = top = 0
    for _, size in sorted(events):
        live += size
        top = max(top, live)
    return top / MIB


def extra(backend: str, optimizer: str, samples: int) -> tuple[float, float]:
    """Return the MiB held at most by a training step and by a teleport."""
    size = Size(1024, 8, samples)
    made = network(backend, size)
    weights = 4 * (size.depth * size.width * (size.width + 1) + 10 * (size.width + 1)) / MIB
    kept = weights * (1 + STATE[optimizer])
    train, jump = PEAKS[backend.partition(":")[0]](made, weights, STATE[optimizer])
    return kept + train, kept + jump


def _torch(made: Any, weights: float, moments: int) -> tuple[float, float]:
    """Measured: the step is in place, as torch's optimizers are."""
    del weights
    parameters = list(made.model.parameters())
    rules = {
        1: lambda: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
        2: lambda: torch.optim.Adam(parameters, lr=1e-5),
    }
    optimizer = rules[moments]()

    def step() -> None:
        optimizer.zero_grad()
        made.loss().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    train = peak(step)
    optimizer.zero_grad()
    return train, peak(made.teleport)


def _numpy(made: Network, weights: float, moments: int) -> tuple[float, float]:
    """Measured; of the step the gradient, to which new weights and state are added."""
    return _traced(made.gradient) + weights * (1 + moments), _traced(made.teleport)


def _traced(function: Callable[[], object]) -> float:
    function()
    tracemalloc.start()
    function()
    _, top = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return top / MIB


def _jax(made: Any, weights: float, moments: int) -> tuple[float, float]:
    """As compiled: temporaries and results, the step's weights and state donated."""
    made.teleport()
    (jump,) = made.jumps.values()
    parts = [
        function.lower(made.params, *made.batch).compile().memory_analysis()
        for function in (made.value_and_grad, jump)
    ]
    del weights, moments
    train, teleport = ((m.temp_size_in_bytes + m.output_size_in_bytes) / MIB for m in parts)
    return train, teleport


PEAKS: dict[str, Callable[[Any, float, int], tuple[float, float]]] = {
    "torch": _torch,
    "numpy": _numpy,
    "jax": _jax,
}
