"""Print the figures of the design, measured side by side in one process, for every backend.

    python asv_bench/figures.py                          # about ten minutes on 2 cores
    python asv_bench/figures.py --backend torch --only step,whole

A ratio is the time of a teleport over the time of one training gradient (forward and backward) of
the same network on the same batch, medians over interleaved repeats. An ascent step after the
first is (T(6 steps) - T(1 step)) / 5. The network is a GELU MLP of square layers with a head of 10.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

from benchmarks.common import Size, medians
from benchmarks.networks import network
from benchmarks.places import jax, torch
from clock import CASES as CLOCKED
from clock import measured
from peaks import CASES, extra

STEPS = 6
REPEATS = {64: (60, 400), 256: (20, 100), 1024: (9, 25), 2048: (7, 9), 4096: (5, 7)}
"""Fewest and most interleaved repeats, by width."""


def repeats(width: int) -> tuple[int, int]:
    """Return the fewest and most repeats for a width: those of the next that is named."""
    return REPEATS[min((known for known in REPEATS if known >= width), default=max(REPEATS))]


def ratios(backend: str, *sizes: Size, steps: int = 1) -> list[float]:
    """Return the cost of a teleport of each size in gradients, all measured in turns."""
    networks = [network(backend, size) for size in sizes]
    functions = [f for n in networks for f in (n.gradient, lambda n=n: n.teleport(steps))]
    found = medians(*functions, seconds=40, repeats=repeats(max(size.width for size in sizes)))
    return [jump / unit for unit, jump in zip(found[::2], found[1::2], strict=True)]


def step_ratio(backend: str, size: Size) -> float:
    """Return the cost of an ascent step after the first, in gradients."""
    made = network(backend, size)
    functions = made.gradient, made.teleport, lambda: made.teleport(STEPS)
    unit, one, many = medians(*functions, seconds=40, repeats=repeats(size.width))
    return (many - one) / (STEPS - 1) / unit


def show(what: str, value: float, target: float, unit: str = "gradients") -> None:
    """Print one row."""
    verdict = "ok" if value <= target else "MISSED"
    print(f"{what:<72} {value:8.3g} {unit:<10} (figure: <= {target:g})  {verdict}", flush=True)


def steps(backend: str) -> None:
    """One ascent step after the first, activations reused."""
    narrow = 2.0 if backend.startswith("jax") else 4.0
    for size, target in (
        (Size(64, 4, 32), narrow),
        (Size(1024, 4, 64), 1.4),
        (Size(1024, 4, 256), 1.4),
        (Size(2048, 4, 64), 1.4),
        (Size(2048, 4, 256), 1.4),
    ):
        name = f"ascent step, width {size.width}, depth {size.depth}, {size.samples} samples"
        show(name, step_ratio(backend, size), target)


def whole(backend: str) -> None:
    """A whole one-step teleport."""
    for width in (1024, 2048):
        (ratio,) = ratios(backend, Size(width))
        show(f"whole one-step teleport, width {width}, depth 4, 64 samples", ratio, 4.0)


def clock(backend: str) -> None:
    """A look-ahead teleport as ``Teleporter`` makes it, one thread, and what it is charged."""
    if not backend.startswith("torch"):
        return  # the optimizer, and the eager passes, are torch's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in CLOCKED:
            unit, taken, charged = measured(case)
            print(f"    {case.name}: a gradient takes {unit:.2f} ms")
            show(f"look-ahead teleport, {case.name}", taken, case.most)
            if case.charged:
                show(f"charge off the clock, {case.name}", abs(charged / taken - 1), 0.25, "share")
    finally:
        torch.set_num_threads(threads)


def scaling(backend: str) -> None:
    """Growth of the ratio to one gradient with width and with depth."""
    narrow, wide = ratios(backend, Size(256), Size(4096))
    print(f"    width 256: {narrow:.2f} gradients, width 4096: {wide:.2f}")
    show("whole teleport, ratio at width 4096 over width 256", wide / narrow, 1.25, "x")
    shallow, deep = ratios(backend, Size(256, 4), Size(256, 64))
    print(f"    depth 4: {shallow:.2f} gradients, depth 64: {deep:.2f}")
    show("whole teleport, ratio at depth 64 over depth 4", deep / shallow, 1.25, "x")


def memory(backend: str) -> None:
    """Peak memory of a teleport over that of a training step, weights and state included."""
    for optimizer, samples in CASES:
        plain, jump = extra(backend, optimizer, samples)
        name = f"{optimizer}, batch {samples}"
        print(f"    width 1024, depth 8, {name}: {plain:.0f} MiB, teleport {jump:.0f} MiB")
        show(f"extra peak memory, {name}", jump / plain - 1, 0.3, "share")


def rivals(backend: str) -> None:
    """Ten steps against the paper taken literally and against symmetry teleportation."""
    if not backend.startswith("torch"):
        return  # the rivals are in torch
    from nullport_torch.lab.baselines import literal
    from nullport_torch.lab.baselines.problem import Problem
    from nullport_torch.lab.baselines.symmetry_published import symmetry_teleport

    made = network(backend, Size(2048))
    ours, theirs = medians(
        lambda: made.teleport(10),
        lambda: literal.teleport(Problem(made.model, made.x, made.y), steps=10, rate=1e-9),
        seconds=60,
        repeats=(3, 5),
    )
    against("the paper's literal recipe, width 2048", ours, theirs, 6)
    made = network(backend, Size(512))
    weights = [m.weight.detach() for m in made.model if isinstance(m, torch.nn.Linear)]
    unit, ours, theirs = medians(
        made.gradient,
        lambda: made.teleport(10),
        lambda: symmetry_teleport(weights, made.x, made.y, steps=10, rate=1e-9),
        seconds=40,
        repeats=(7, 25),
    )
    against("symmetry teleportation, width 512, depth 4", ours, theirs, 10)
    print(f"    in gradients: {ours / unit:.1f} against {theirs / unit:.1f}")


def against(whom: str, ours: float, theirs: float, target: float) -> None:
    """Print how many times faster ten steps are than a rival's."""
    show(f"1 / speed-up over {whom}", ours / theirs, 1 / target, "x")
    print(f"    {theirs:.2f} s against {ours:.2f} s: {theirs / ours:.1f} times faster")


def imports(backend: str) -> None:
    """Import time of nullport over that of numpy, the same for all backends."""
    if not backend.startswith("torch"):
        return
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    both = []
    for name in ("numpy", "nullport"):
        runs = [
            float(subprocess.check_output([sys.executable, "-c", code.format(name)]))
            for _ in range(7)
        ]
        both.append(median(runs))
    show("import nullport, more than import numpy", both[1] - both[0], 0.15, "s")


def invariance(backend: str) -> None:
    """Relative loss change of an exact teleport."""
    for dtype, target in (("float32", 1e-5), ("float64", 1e-12)):
        report = network(backend, Size(256), dtype).teleport(radius=0.3)
        change = abs(float(report.loss_after - report.loss_before)) / float(report.loss_before)
        show(f"loss change, exact null space, radius 0.3, {dtype}", change, target, "relative")


FIGURES: dict[str, Callable[[str], None]] = {
    "step": steps,
    "whole": whole,
    "clock": clock,
    "scaling": scaling,
    "rivals": rivals,
    "memory": memory,
    "import": imports,
    "invariance": invariance,  # the last: it switches JAX to double precision
}


def main() -> None:
    """Print the chosen figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", default="torch,jax,numpy", help="comma-separated names")
    parser.add_argument("--only", default=",".join(FIGURES), help="comma-separated names")
    given = parser.parse_args()
    names = given.only.split(",")
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; allowed: {', '.join(FIGURES)}")
    print(f"{os.cpu_count()} processors, torch {torch.__version__}, jax {jax.__version__}")
    for backend in given.backend.split(","):
        print(f"\n{backend}")
        for name in names:
            FIGURES[name](backend + ":cpu")


if __name__ == "__main__":
    main()
