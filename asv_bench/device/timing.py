"""Rows, seconds and bytes, of a device that has to be waited for."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """A line of the page.

    Attributes:
        what: In words.
        value: Measured.
        unit: Of it.
        limit: The figure to reach, which the value may not exceed; None where there is none.
    """

    what: str
    value: float
    unit: str = ""
    limit: float | None = None


Rows = Iterator[Row]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``.
        small: Sizes that a processor does in seconds, to see that everything runs.
        seconds: Time for the part; loops that repeat stop by then.
    """

    device: str
    small: bool
    seconds: float

    def place(self, backend: str) -> str:
        """Return what the benchmarks call a backend on this device."""
        return "numpy:cpu" if backend == "numpy" else f"{backend}:{self.device}"


def wait(device: str) -> None:
    """Return when everything that was asked of torch has been done."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], object], device: str) -> float:
    """Return the seconds of a call, the device waited for before and after."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def peak(function: Callable[[], Any], device: str) -> float:
    """Return the most MiB that torch held during a call, what it held before included.

    On a processor it is what was allocated on top.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MIB
    from peaks import peak as on_top

    return on_top(function)
