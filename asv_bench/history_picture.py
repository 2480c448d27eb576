"""Draw the tracked costs over the commits into docs/benchmarks/history.png.

    python asv_bench/history_picture.py          # after: make bench-track

The graphs that asv publishes have more in them, and need a browser with a network; this is for a
page.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import Key, Saved, load

HERE = Path(__file__).parent
PANELS = {
    "teleport.Width.track_gradients": "teleport, depth 4, by width",
    "teleport.Depth.track_gradients": "teleport, width 128, by depth",
    "look_ahead.Width.track_gradients": "look-ahead teleport (torch), by width",
}
COLOURS = {"torch": "C1", "numpy": "C0", "jax": "C2"}


def order(repository: Path) -> dict[str, int]:
    """Return the place of every commit of HEAD's first parents, oldest first."""
    command = ["git", "-C", str(repository), "rev-list", "--first-parent", "--reverse", "HEAD"]
    hashes = subprocess.check_output(command, text=True).split()
    return {commit: place for place, commit in enumerate(hashes, 1)}


def lines(found: Sequence[Saved], name: str) -> dict[Key, list[float]]:
    """Return the values of every case over the commits, not a number where there is none."""
    keys = sorted({key for saved in found for key in saved.values.get(name, {})})
    missing = float("nan")
    return {key: [saved.values.get(name, {}).get(key, missing) for saved in found] for key in keys}


def draw(found: Sequence[Saved], out: Path) -> None:
    """Draw a panel per benchmark; wider or deeper networks have thicker lines."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 5.5))
    ticks = [saved.commit[:7] for saved in found]
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        cases = lines(found, name)
        sizes = sorted({size for _, size in cases})
        for (backend, size), values in cases.items():
            width = 1 + sizes.index(size)
            ax.semilogy(
                values,
                ".-",
                color=COLOURS[backend],
                lw=width,
                label=f"{backend}, {size}",
                alpha=0.8,
            )
        ax.set_title(title)
        ax.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(axis="y", which="minor", labelsize=7)
        ax.grid(alpha=0.3, which="both")
        if cases:
            ax.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.08))
    axes[0].set_ylabel("training gradients")
    figure.tight_layout()
    figure.savefig(out, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(given: Sequence[str] | None = None) -> int:
    """Draw the machine with most commits; return 1 if none is tracked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/benchmarks/history.png")
    options = parser.parse_args(given)
    place = order(HERE.parent)
    machines: dict[str, list[Saved]] = {}
    for saved in load(options.results):
        if saved.commit in place:
            machines.setdefault(saved.machine["machine"], []).append(saved)
    if not machines:
        print(f"no results in {options.results}: run `make bench-track`", file=sys.stderr)
        return 1
    found = max(machines.values(), key=len)
    draw(sorted(found, key=lambda saved: place[saved.commit]), options.out)
    print(f"wrote {options.out}: {len(found)} commits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
