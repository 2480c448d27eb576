"""What the benchmarks share: backends, sizes, what is skipped, and how things are timed.

Lists of parameters are the same on every machine, or results could not be compared. What a machine
cannot do, or not in time, is skipped in ``setup``. ``NULLPORT_BENCH`` says how much is in time:
``full`` is what takes a processor's core about 2 s a call, ``large`` whatever fits the memory.
``quick``, which is for smoke runs that save nothing, shortens every list of sizes to the smallest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from .places import optional, usable

marks = optional("asv_runner.benchmarks.mark")
SkipNotImplemented = marks.SkipNotImplemented if marks else NotImplementedError

BACKENDS = ("torch:cpu", "torch:cuda", "jax:cpu", "jax:cuda", "numpy:cpu", "cupy:cuda")
FLOPS = {"quick": 2e11, "full": 2e11, "large": float("inf")}
"""Floating-point operations of a call: about 2 s of one processor's core."""

GPU = 50
"""How many times as many a GPU may take."""

BYTES = 8e9
TIMEOUT = 600.0
"""Seconds for one case, its compilation included."""

Function = Callable[[], object]


def budget() -> str:
    """Return ``NULLPORT_BENCH``.

    Raises:
        ValueError: If it is none of the three.
    """
    name = os.environ.get("NULLPORT_BENCH", "full")
    if name not in FLOPS:
        msg = f"invalid NULLPORT_BENCH: {name!r}; allowed: {', '.join(FLOPS)}"
        raise ValueError(msg)
    return name


def sizes(*values: int) -> tuple[int, ...]:
    """Return the sizes that a benchmark is run with, smallest first."""
    return values[:1] if budget() == "quick" else values


WIDTHS = sizes(64, 256, 1024, 2048, 4096)
DEPTHS = sizes(2, 4, 8, 16, 32, 64)
SAMPLES = sizes(16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Size:
    """Sizes of a network of ``depth`` square layers, and of its batch.

    Attributes:
        width: Inputs and outputs of a layer.
        depth: Number of layers.
        samples: Rows of a batch.
    """

    width: int
    depth: int = 4
    samples: int = 64

    @property
    def gradient(self) -> float:
        """Floating-point operations of one training gradient."""
        return 6.0 * self.samples * self.width**2 * self.depth

    @property
    def null_space(self) -> float:
        """The same of the null spaces: QR of the rows, or eigenvectors of their Gram matrix."""
        few = self.samples <= self.width
        one = 4.0 * self.samples**2 * self.width if few else 20.0 * self.width**3
        return one * self.depth

    @property
    def teleport(self) -> float:
        """The same of a whole teleport."""
        return 4 * self.gradient + self.null_space

    @property
    def bytes(self) -> float:
        """Memory of a teleport: weights, gradients, moves and what frameworks keep besides."""
        return 4.0 * self.depth * self.width * (8 * self.width + 10 * self.samples)


def require(backend: str, flops: float, size: float) -> None:
    """Skip what this machine lacks, or what is too much for it.

    Args:
        backend: One of ``BACKENDS``.
        flops: Floating-point operations of a call.
        size: Bytes it needs.

    Raises:
        SkipNotImplemented: If so.
    """
    most = FLOPS[budget()] * (GPU if backend.endswith("cuda") else 1)
    if flops > most or size > BYTES:
        raise SkipNotImplemented(f"{flops:.0e} operations, {size:.0e} bytes: too much")
    if not usable(backend):
        raise SkipNotImplemented(f"{backend} is not here")


def medians(
    *functions: Function,
    seconds: float = 2.0,
    repeats: tuple[int, int] = (3, 25),
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the median seconds of each function, called in turns after a warm-up.

    Args:
        *functions: What to time; each waits for its device itself.
        seconds: Time for all, after which no turn starts but the fewest.
        repeats: Fewest and most turns.
        clock: What the seconds are of.
    """
    if budget() == "quick":
        repeats = (1, 1)
    for function in functions:
        function()
    taken: list[list[float]] = [[] for _ in functions]
    end = clock() + seconds
    for turn in range(repeats[1]):
        if turn >= repeats[0] and clock() > end:
            break
        for function, record in zip(functions, taken, strict=True):
            start = clock()
            function()
            record.append(clock() - start)
    return [median(record) for record in taken]


class Timed:
    """How asv times here: every call is one sample, since ``setup`` runs before each."""

    repeat = (3, 30, 1.0)
    rounds = 2
    timeout = TIMEOUT
