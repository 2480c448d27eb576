"""What a teleport does: the loss stays, the gradient's norm grows; and what it takes of memory."""

from __future__ import annotations

from typing import Any

from benchmarks.common import Size, SkipNotImplemented
from benchmarks.networks import network

from ._times import adapter, shown

SIZE = Size(128, 4, 32)
LARGE = Size(1024, 4, 256)
RADIUS = 0.05


class _Network:
    version = "1"
    params: Any = (("numpy", "torch"),)
    param_names = ("backend",)
    size = SIZE
    dtype = "float64"

    def setup(self, backend: str) -> None:
        if not adapter(backend):
            raise SkipNotImplemented(f"no adapter for {backend}")
        self.made = network(f"{backend}:cpu", self.size, self.dtype)


class Exactness(_Network):
    @shown("Relative change of the loss by a teleport, float64", "relative")
    def track_loss_change(self, backend: str) -> float:
        report = self.made.teleport(radius=RADIUS)
        return abs(float(report.loss_after) / float(report.loss_before) - 1)

    @shown("Gradient norm after a teleport over before, radius .05", "ratio")
    def track_gain(self, backend: str) -> float:
        report = self.made.teleport(radius=RADIUS)
        return float(report.grad_norm_after) / float(report.grad_norm_before)


class Memory(_Network):
    size, dtype = LARGE, "float32"

    @shown("Peak memory of the process, teleport, width 1024, 256 samples", "bytes")
    def peakmem_teleport(self, backend: str) -> None:
        self.made.teleport()


class Import:
    version = "1"
    repeat = 7

    def timeraw_import(self) -> str:
        return "import nullport"


Import.timeraw_import.pretty_name = "Seconds to import nullport"  # type: ignore[attr-defined]
del _Network
