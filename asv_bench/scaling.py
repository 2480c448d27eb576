"""Write docs/benchmarks/scaling.md and its plots from the results that asv has saved.

    make scaling                        # measures first, about forty minutes on 2 cores
    python asv_bench/scaling.py         # only writes the page again
    python asv_bench/scaling.py --results DIR --out DIR

The newest results of every machine in the folder are shown, so those of a machine with a GPU only
have to be copied beside the others.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import Saved, load

from nullport.lab.output import save, write

HERE = Path(__file__).parent
FIGURE = 1.25
"""How much the ratio to one gradient may grow with width and with depth."""

Curve = dict[int, float]
LARGEST = {"width": (256, 4096), "depth": (4, 64)}
PICTURES = {
    "backends": ("whole.Width", "whole.Depth"),
    "rivals": ("rivals.RivalsWidth", "rivals.RivalsDepth"),
}
INTRO = """# How the cost of a teleport scales

One training gradient (forward and backward) of the same network on the same batch is the unit of
every ratio; a ratio that stays as networks grow is what the paper calls a runtime that is nearly
constant. A teleport here is one ascent step with everything around it: its own gradient, the null
spaces, the tangents, the move and the gradient at the moved weights that judges it. Width is varied
at depth 4, depth at width 256, with 64 samples (32 at width 64); the networks are GELU MLPs, torch
in eager mode, JAX jitted as a whole, NumPy on nullport's own layers; BLAS has one thread.

Made by `make scaling`, which runs the benchmarks and then `python asv_bench/scaling.py`; how to
read and compare them is in [asv_bench/README.md](../../asv_bench/README.md).
"""
RIVALS = """### Rivals

The same for all methods on bias-free LeakyReLU MLPs. Methods that take steps take ten; nullport's
one step is shown besides. The level set's search ends where it finds no better point, which may be
sooner. What they gain is another question: `python asv_bench/rivals_table.py`. Missing points would
take too long.
"""


def curves(saved: Saved, benchmark: str) -> dict[str, Curve]:
    """Return a curve over the second parameter for every value of the first."""
    found: dict[str, Curve] = {}
    for (name, size), value in saved.values.get(benchmark, {}).items():
        found.setdefault(name, {})[size] = value
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


def newest(folder: Path) -> list[Saved]:
    """Return the newest results of every machine that ran these benchmarks, newest first."""
    best: dict[str, Saved] = {}
    for saved in sorted(load(folder), key=lambda saved: saved.started):
        if curves(saved, "whole.Width.track_gradients"):
            best[saved.machine["machine"]] = saved
    return sorted(best.values(), key=lambda saved: -saved.started)


def draw(saved: Saved, classes: Sequence[str], path: Path) -> None:
    """Draw seconds and ratios against width and against depth."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogFormatter, NullLocator

    figure, axes = plt.subplots(2, 2, figsize=(10, 8), sharex="col")
    for column, (name, size) in enumerate(zip(classes, LARGEST, strict=True)):
        seconds, ratios = axes[0][column], axes[1][column]
        for method, curve in curves(saved, f"{name}.time_teleport").items():
            (line,) = seconds.loglog(list(curve), list(curve.values()), "o-", ms=4, label=method)
            unit = curves(saved, f"{name}.time_gradient").get(method, {})
            seconds.loglog(list(unit), list(unit.values()), ":", color=line.get_color())
            ratio = curves(saved, f"{name}.track_gradients").get(method, {})
            ratios.loglog(list(ratio), list(ratio.values()), "o-", ms=4, color=line.get_color())
        seconds.set_title(f"against {size}")
        ratios.set_xlabel(size)
        sizes = sorted(
            {s for curve in curves(saved, f"{name}.time_teleport").values() for s in curve}
        )
        for ax in (seconds, ratios):
            ax.grid(alpha=0.3, which="both")
            ax.set_xticks(sizes, list(map(str, sizes)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
        ratios.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))
    with_unit = curves(saved, f"{classes[0]}.time_gradient")
    axes[0][0].set_ylabel("seconds (dotted: one gradient)" if with_unit else "seconds")
    axes[1][0].set_ylabel("gradients")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    save(figure, path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def table(header: str, found: dict[str, Curve], show: Callable[[float], str]) -> Iterator[str]:
    """Yield a Markdown table: a row per curve, a column per size."""
    sizes = sorted({size for curve in found.values() for size in curve})
    yield f"| {header} | " + " | ".join(map(str, sizes)) + " |"
    yield "| --- " * (len(sizes) + 1) + "|"
    for name, curve in found.items():
        cells = [show(curve[size]) if size in curve else "-" for size in sizes]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def growth(saved: Saved) -> Iterator[str]:
    """Yield, in words, how the ratio moves, next to its figure."""
    for benchmark, (size, (low, high)) in zip(PICTURES["backends"], LARGEST.items(), strict=True):
        for name, curve in curves(saved, f"{benchmark}.track_gradients").items():
            if low in curve and high in curve:
                factor = curve[high] / curve[low]
                said = "within" if factor <= FIGURE else "**above**"
                yield (
                    f"- {name}: from {size} {low} to {high} the ratio goes from {curve[low]:.2f} "
                    f"to {curve[high]:.2f} gradients, a factor of {factor:.2f}, {said} the figure "
                    f"of {FIGURE}."
                )
    yield ""


def section(saved: Saved, suffix: str) -> Iterator[str]:
    """Yield the part of the page on one machine."""
    machine = saved.machine
    yield f"## {machine.get('cpu') or machine['machine']}\n"
    yield f"{machine.get('num_cpu', '?')} cores, {machine.get('os', '')}; " + versions(machine)
    yield f"Commit `{saved.commit[:8]}`, {time.strftime('%Y-%m-%d', time.gmtime(saved.started))}.\n"
    yield from growth(saved)
    yield f"![seconds and ratios of the backends](scaling-backends{suffix}.png)\n"
    for size in LARGEST:
        name = f"whole.{size.title()}"
        gradients = curves(saved, f"{name}.track_gradients")
        yield from table(f"teleport in gradients, {size}", gradients, "{:.2f}".format)
        milliseconds = curves(saved, f"{name}.time_teleport")
        yield from table(f"milliseconds, {size}", milliseconds, lambda s: f"{1e3 * s:.3g}")
    samples = curves(saved, "whole.Samples.track_gradients")
    yield from table("teleport in gradients, samples at width 1024", samples, "{:.2f}".format)
    step = curves(saved, "whole.Step.track_gradients")
    yield from table("a step after the first in gradients, width", step, "{:.2f}".format)
    gain = curves(saved, "whole.Width.track_gain_per_second")
    yield from table("log of the gradient's norm per second, width", gain, "{:.3g}".format)
    yield from table(
        "MiB, teleport over gradient (JAX: compiling too), width", memory(saved), "{:+.0f}".format
    )
    if curves(saved, "rivals.RivalsWidth.time_teleport"):
        yield RIVALS
        yield f"![seconds and ratios of the rivals](scaling-rivals{suffix}.png)\n"
        for size, name in zip(LARGEST, PICTURES["rivals"], strict=True):
            found = curves(saved, f"{name}.track_gradients")
            yield from table(f"in gradients, {size}", found, "{:.3g}".format)


def memory(saved: Saved) -> dict[str, Curve]:
    """Return by how many MiB a process's peak is higher with a teleport than with a gradient."""
    less, more = (curves(saved, f"whole.Width.peakmem_{what}") for what in ("gradient", "teleport"))
    return {
        name: {size: (more[name][size] - value) / 2**20 for size, value in curve.items()}
        for name, curve in less.items()
        if more.get(name, {}).keys() >= curve.keys()
    }


def versions(machine: dict[str, str]) -> str:
    """Return the versions of what is installed here, if the machine is this one."""
    if machine["machine"] != platform.node():
        return "versions not recorded."
    names = ("torch", "jax", "numpy", "cupy")
    there = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    found = [f"{name} {there[name]}" for name in names if name in there]
    return ", ".join([*found, f"Python {platform.python_version()}"]) + "."


def main(given: Sequence[str] | None = None) -> int:
    """Write the page; return 1 if there are no results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=HERE / ".asv" / "results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks")
    options = parser.parse_args(given)
    found = newest(options.results)
    if not found:
        print(f"no results in {options.results}: run `make scaling`", file=sys.stderr)
        return 1
    parts = [INTRO]
    for number, saved in enumerate(found, 1):
        suffix = "" if number == 1 else f"-{number}"
        for what, classes in PICTURES.items():
            draw(saved, classes, options.out / f"scaling-{what}{suffix}.png")
        parts.append("\n".join(section(saved, suffix)))
    page = options.out / "scaling.md"
    write(page, "\n".join(parts).rstrip() + "\n")
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
