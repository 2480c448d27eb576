"""Print the figures of the design for torch, measured side by side in one process.

    python asv_bench/figures.py            # about five minutes on 2 cores
    python asv_bench/figures.py --only step,whole

A ratio is the median, over interleaved repeats, of the time of a teleport over the time of one
training gradient (forward and backward) of the same network on the same batch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))

from rivals.literal import literal_teleport
from rivals.symmetry import symmetry_teleport

from nullport import TeleportConfig
from nullport._tangent import Engine
from nullport_torch import teleport


def network(width: int, depth: int, samples: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a GELU MLP of ``depth`` square layers and a closure on random data."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    x, y = torch.randn(samples, width), torch.randint(0, 10, (samples,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def gradient(model: nn.Module, closure: Callable[[], Tensor]) -> Callable[[], object]:
    """Return a function that computes one training gradient."""
    return lambda: torch.autograd.grad(closure(), list(model.parameters()))


def times(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Return the median seconds of each function, called in turns after a warm-up."""
    taken: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, record in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - start)
    return [median(record) for record in taken]


def jump(
    model: nn.Module, closure: Callable[[], Tensor], **options: object
) -> Callable[[], object]:
    """Return a function that teleports a little, remembering the tangent engine."""
    config = TeleportConfig(radius=1e-3, **options)  # type: ignore[arg-type]
    engine = Engine(config.tangent)
    return lambda: teleport(model, closure, config=config, engine=engine)


def step_ratio(width: int, depth: int, samples: int, repeats: int) -> float:
    """Cost of an ascent step after the first, in gradients."""
    model, closure = network(width, depth, samples)
    unit, one, many = times(
        repeats,
        gradient(model, closure),
        jump(model, closure, steps=1),
        jump(model, closure, steps=6),
    )
    return (many - one) / 5 / unit


def whole_ratio(width: int, depth: int, samples: int, repeats: int) -> float:
    """Cost of a whole one-step teleport, in gradients."""
    model, closure = network(width, depth, samples)
    unit, one = times(repeats, gradient(model, closure), jump(model, closure))
    return one / unit


def show(what: str, value: float, target: float, unit: str = "gradients") -> None:
    """Print one row."""
    verdict = "ok" if value <= target else "MISSED"
    print(f"{what:<72} {value:8.3g} {unit:<10} (figure: <= {target:g})  {verdict}", flush=True)


def invariance() -> None:
    """Relative loss change of an exact teleport."""
    for dtype, target in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, _ = network(256, 4, 64)
        model.to(dtype)
        x, y = torch.randn(64, 256, dtype=dtype), torch.randint(0, 10, (64,))
        report = teleport(
            model,
            lambda m=model, x=x, y=y: nn.functional.cross_entropy(m(x), y),  # type: ignore[misc]
            config=TeleportConfig(radius=0.3),
        )
        change = abs(report.loss_after - report.loss_before) / report.loss_before
        show(f"loss change, exact null space, radius 0.3, {dtype}", change, target, "relative")


def steps() -> None:
    """One ascent step after the first."""
    for width, depth, samples, target in (
        (64, 4, 64, 4.0),
        (1024, 4, 256, 1.4),
        (2048, 4, 256, 1.4),
    ):
        ratio = step_ratio(width, depth, samples, 9 if width < 1000 else 5)
        show(f"ascent step, width {width}, depth {depth}, {samples} samples", ratio, target)


def whole() -> None:
    """A whole one-step teleport."""
    for width in (1024, 2048):
        ratio = whole_ratio(width, 4, 64, 9)
        show(f"whole one-step teleport, width {width}, depth 4, 64 samples", ratio, 4.0)


def rivals() -> None:
    """Ten steps against the paper taken literally and against symmetry teleportation."""
    model, closure = network(2048, 4, 64)
    ours, theirs = times(
        1, jump(model, closure, steps=10), lambda: literal_teleport(model, closure, 10, 1e-9)
    )
    show("1 / speed-up over the paper's literal recipe, width 2048", ours / theirs, 1 / 6, "x")
    print(f"    {theirs:.2f} s against {ours:.2f} s: {theirs / ours:.1f} times faster")
    model, _ = network(512, 4, 64)
    weights = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    x, y = torch.randn(64, 512), torch.randint(0, 10, (64,))
    ours, theirs = times(
        3,
        jump(model, lambda: nn.functional.cross_entropy(model(x), y), steps=10),
        lambda: symmetry_teleport(weights, x, y, steps=10, rate=1e-9),
    )
    show("1 / speed-up over symmetry teleportation, width 512, depth 4", ours / theirs, 0.1, "x")
    print(f"    {theirs:.2f} s against {ours:.2f} s: {theirs / ours:.1f} times faster")


def scaling() -> None:
    """Growth of the ratio to one gradient with width and with depth."""
    narrow, wide = (whole_ratio(w, 4, 64, 7) for w in (256, 4096))
    print(f"    width 256: {narrow:.2f} gradients, width 4096: {wide:.2f}")
    show("whole teleport, ratio at width 4096 over width 256", wide / narrow, 1.25, "x")
    shallow, deep = (whole_ratio(256, d, 64, 7) for d in (4, 64))
    print(f"    depth 4: {shallow:.2f} gradients, depth 64: {deep:.2f}")
    show("whole teleport, ratio at depth 64 over depth 4", deep / shallow, 1.25, "x")


def peak(function: Callable[[], object]) -> float:
    """Return the largest number of MiB that torch's allocator held more than at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    live = top = 0
    for _, size in sorted(events):
        live += size
        top = max(top, live)
    return top / 2**20


def memory() -> None:
    """Peak memory of a teleport over that of a training step, weights and state included."""
    for name, samples, rule in (
        ("momentum, batch 4096", 4096, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
        ("momentum, batch 1024", 1024, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
        ("adam, batch 64", 64, lambda p: torch.optim.Adam(p, lr=1e-5)),
    ):
        model, closure = network(1024, 8, samples)
        optimizer = rule(model.parameters())

        def step(optimizer=optimizer, closure=closure) -> None:
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()

        step()
        optimizer.zero_grad()
        kept = sum(p.numel() for p in model.parameters()) * 4 / 2**20
        kept += sum(t.numel() for s in optimizer.state.values() for t in s.values()) * 4 / 2**20
        plain = kept + peak(step)
        optimizer.zero_grad()
        with_teleport = kept + peak(jump(model, closure))
        print(f"    width 1024, depth 8, {name}: {plain:.0f} MiB, teleport {with_teleport:.0f} MiB")
        show(f"extra peak memory, {name}", with_teleport / plain - 1, 0.3, "share")


def imports() -> None:
    """Import time of nullport over that of numpy."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    both = []
    for name in ("numpy", "nullport"):
        runs = [
            float(subprocess.check_output([sys.executable, "-c", code.format(name)]))
            for _ in range(7)
        ]
        both.append(median(runs))
    show("import nullport, more than import numpy", both[1] - both[0], 0.15, "s")


FIGURES = {
    "invariance": invariance,
    "step": steps,
    "whole": whole,
    "rivals": rivals,
    "scaling": scaling,
    "memory": memory,
    "import": imports,
}


def main() -> None:
    """Print the chosen figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default=",".join(FIGURES), help="comma-separated names")
    names = parser.parse_args().only.split(",")
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; allowed: {', '.join(FIGURES)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    for name in names:
        FIGURES[name]()


if __name__ == "__main__":
    main()
