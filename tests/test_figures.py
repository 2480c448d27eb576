"""What all pictures share: colours, ticks, marks, legends and whole names."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from nullport.lab import figures
from nullport.lab.compare import Results, Run, Settings
from nullport.lab.compare.plot import plot
from nullport.lab.compare.records import Point, Teleport
from nullport.lab.diagnose import Diagnosis, Scale
from nullport.lab.diagnose.picture import draw
from nullport.lab.suite import pictures

SEEN_BY = {
    "everybody": np.eye(3),
    "deuteranopes": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanopes": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "tritanopes": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""What is seen of linear RGB (Machado, Oliveira and Fernandes, 2009)."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that are saved, in the place of files."""
    found: list[Any] = []
    monkeypatch.setattr("nullport.lab.output.save", lambda figure, path: found.append(figure))
    return found


@pytest.mark.parametrize("who", SEEN_BY)
def test_colours_can_be_told_apart(who: str) -> None:
    colours = [s.colour for s in figures.styles("abcdefg").values()]
    linear = [np.power(to_rgb(c), 2.2) for c in (figures.GREY, *colours)]
    seen = [np.clip(np.array(SEEN_BY[who]) @ c, 0, 1) ** (1 / 2.2) for c in linear]
    gaps = [math.dist(a, b) for a, b in itertools.combinations(seen, 2)]
    assert min(gaps) > 0.1


def test_lines_differ_without_colours() -> None:
    found = figures.styles("abcdefg").values()
    assert len({s.dash for s in found}) == len({s.shape for s in found}) == 7
    assert list(figures.styles("ab", first=1).values()) == list(figures.styles("xab").values())[1:]


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [([0.01, 1.0], True, ["0.01", "0.1", "1"]), ([0.2, 0.9], True, ["0.2", "0.5"]),
     ([1.0, 2.0], False, None), ([0.0, 0.0], False, None), ([math.nan, 1.0], False, None)],
)  # fmt: skip
def test_ticks_are_plain(values: list[float], log: bool, ticks: list[str] | None) -> None:
    figure = figures.new(4, 3)
    axes = figure.subplots()
    axes.plot(values)
    figures.log_where_wide(axes)
    assert (axes.get_yscale() == "log") == log
    if ticks is not None:
        figure.draw_without_rendering()
        low, high = axes.get_ylim()
        places = zip(axes.yaxis.get_majorticklocs(), axes.get_yticklabels(), strict=True)
        assert [label.get_text() for y, label in places if low <= y <= high] == ticks


def result(seeds: int, flags: tuple[bool, ...]) -> Results:
    curve = tuple(Point(10.0 * i, float(i), 2.0**-i, 10 * i) for i in range(5))
    teleports = tuple(
        Teleport(10 * i, 10.0 * i, 1.0, {"accepted": flag}) for i, flag in enumerate(flags, 1)
    )
    runs = [
        Run(arm, seed, 40, 40.0, 4.0, 0.1, 0.9, curve, teleports if arm == "teleport" else ())
        for arm in ("baseline", "teleport", "lr 0.3")
        for seed in range(seeds)
    ]
    settings = replace(Settings.make(seeds=seeds), task="a/long/path/" * 12 + "own.py:task")
    return Results(settings, {}, tuple(runs))


def test_teleports_are_marked_and_the_band_is_explained(drawn: list[Any]) -> None:
    plot(result(2, (True, False)), "a.png")
    (figure,) = drawn
    left = figure.axes[0]
    marks = {line.get_label(): line for line in left.lines if line.get_linestyle() == "None"}
    assert set(marks) == {figures.KEPT, figures.REFUSED}
    assert marks[figures.KEPT].get_xdata() == pytest.approx([10.0, 10.0])
    assert marks[figures.REFUSED].get_xdata() == pytest.approx([20.0, 20.0])
    assert marks[figures.REFUSED].get_ydata() == pytest.approx([0.25, 0.25], rel=0.05)
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "line: mean of 2 seeds; band: lowest to highest of them"
    texts = [text.get_text() for text in legend.get_texts()]
    assert {"with teleports", "without teleports", "lr 0.3", *marks} == set(texts)
    assert len(texts) == 5  # of both panels, once


def test_one_seed_has_no_band_and_no_marks_where_nothing_was(drawn: list[Any]) -> None:
    plot(result(1, ()), "a.png")
    assert drawn[0].legends[0].get_title().get_text() == "one seed"
    assert all(line.get_linestyle() != "None" for line in drawn[0].axes[0].lines)


def inside(figure: Any, text: Any) -> bool:
    box, whole = text.get_window_extent(), figure.bbox
    return bool(box.x0 >= -1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= whole.y1 + 1)


def test_a_long_title_is_not_clipped(drawn: list[Any]) -> None:
    plot(result(1, ()), "a.png")
    drawn[0].canvas.draw() if hasattr(drawn[0], "canvas") else None
    drawn[0].draw_without_rendering()
    assert inside(drawn[0], drawn[0]._suptitle)


@pytest.mark.parametrize("count", [2, 70])
def test_names_of_layers_are_whole(drawn: list[Any], count: int) -> None:
    names = [f"encoder.blocks.{i}.attention.self.query.projection.weight" for i in range(count)]
    maps = tuple(Scale(name, "linear", 1.0, 0.5, 0.1, 1.0, 1.0, 1.0) for name in names)
    draw(Diagnosis(1.0, "training", 1.0, maps), "a.png")
    figure = drawn[0]
    figure.draw_without_rendering()
    labels = figure.axes[1].get_xticklabels()
    assert [label.get_text() for label in labels] == [n.removesuffix(".weight") for n in names]
    assert all(inside(figure, label) for label in labels)


def test_marks_of_a_grid_are_where_teleports_were() -> None:
    run = {
        "curve": {"step": [0, 10, 20], "loss": [4.0, 2.0, 1.0], "spent": [0.0, 12.0, 22.0]},
        "teleport_steps": [5, 10],
        "teleport_kept": [True, False],
    }
    found = list(pictures._teleports([run], [0, 10, 20], [0.0, 12.0, 22.0], [4.0, 2.0, 1.0]))
    assert found == [(6.0, 3.0, True), (12.0, 2.0, False)]
    old = {key: value for key, value in run.items() if key != "teleport_kept"}
    assert list(pictures._teleports([old], [0, 10], [0.0, 12.0], [4.0, 2.0])) == []
    assert Path("a.png").exists() is False  # nothing is written
