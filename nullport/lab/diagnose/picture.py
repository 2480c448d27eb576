"""A diagnosis as a picture: sizes of signals on their way up, of cotangents on their way down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nullport.lab.compare.extras import require
from nullport.lab.diagnose.scales import Diagnosis
from nullport.lab.diagnose.words import verdict
from nullport.lab.output import save


def draw(diagnosis: Diagnosis, path: str | Path) -> None:
    """Draw both panels, a position per map in the order of the forward pass, into a file.

    Args:
        diagnosis: What to draw.
        path: File to write; its suffix says in which format.

    Raises:
        MissingExtra: If matplotlib is not installed.
        OSError: If the file cannot be written.
        ValueError: If the format is not known.
    """
    figure = require("matplotlib.figure").Figure(figsize=(10, 4.5), layout="constrained", dpi=120)
    signals, cotangents = figure.subplots(1, 2)
    maps = diagnosis.maps
    signals.plot([one.inputs for one in maps], "o-", label="inputs")
    signals.plot([one.outputs for one in maps], "s--", label="outputs")
    signals.set_ylabel("root mean square")
    signals.set_title("signals")
    cotangents.plot([one.cotangent for one in maps], "o-", color="tab:red", label="cotangent")
    cotangents.set_ylabel("norm")
    cotangents.set_title("cotangents: gradients by the outputs")
    for axes in (signals, cotangents):
        _finish(axes, [_short(one.name) for one in maps])
    signals.legend()
    figure.suptitle(verdict(diagnosis))
    save(figure, path)


def _short(name: str, most: int = 24) -> str:
    """Return a name without what all have, and without its beginning if it is long."""
    name = name.removesuffix(".weight")
    return name if len(name) <= most else "…" + name[1 - most :]


def _finish(axes: Any, names: list[str]) -> None:
    """Name the maps, at most about thirty of them, and scale by powers of ten where possible."""
    every = 1 + (len(names) - 1) // 30
    positive = any(y > 0 for line in axes.lines for y in line.get_ydata())
    if positive:  # zeros, as of dead units, are left out
        axes.set_yscale("log")
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90)
    axes.grid(alpha=0.3)
