"""A diagnosis as a picture: sizes of signals on their way up, of cotangents on their way down."""

from __future__ import annotations

from pathlib import Path

from nullport.lab import figures, output
from nullport.lab.diagnose.scales import Diagnosis
from nullport.lab.diagnose.words import verdict


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
    maps = diagnosis.maps
    names = [one.name.removesuffix(".weight") for one in maps]
    room = 0.075 * max(map(len, names))  # inches of the longest name: none is cut
    figure = figures.new(min(40.0, max(8.0, 1.5 + 0.25 * len(maps))), 6.5 + room)
    signals, cotangents = figure.subplots(2, 1, sharex=True)
    one, two, three = figures.styles(["inputs", "outputs", "cotangent"]).values()
    signals.plot([m.inputs for m in maps], "o-", color=two.colour, label="inputs")
    signals.plot([m.outputs for m in maps], "s--", color=three.colour, label="outputs")
    signals.set_ylabel("root mean square")
    signals.set_title("signals, on their way up")
    signals.legend()
    cotangents.plot([m.cotangent for m in maps], "o-", color=one.colour)
    cotangents.set_ylabel("norm")
    cotangents.set_title("cotangents: gradients by the outputs, on their way down")
    for axes in (signals, cotangents):
        figures.log_where_wide(axes)
        axes.grid(alpha=0.3)
    cotangents.set_xticks(range(len(maps)), names, rotation=90)
    figures.title(figure, verdict(diagnosis))
    output.save(figure, path)
