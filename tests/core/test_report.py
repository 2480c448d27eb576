"""The report: numbers for a logger, a readable table, a picture."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nullport import TeleportReport
from nullport._report import Cause, Hold, LayerReport

MOVED = LayerReport("body.weight", "linear", 17, 8, 8, 9, 0.3, 1e-15, 1e-16)
STILL = LayerReport("stem.weight", "linear", 6, 8, 6, 0, hold=Hold.EMPTY)
OUT = LayerReport("embedding.weight", note="also used by gather (embedding)")
REPORT = TeleportReport(
    loss_before=1.25,
    loss_after=1.25,
    grad_norm_before=0.5,
    grad_norm_after=0.75,
    radius=0.3,
    seconds=0.125,
    cost=3.5,
    tangent="jvp",
    layers=(MOVED, STILL, OUT),
)


def test_as_dict_is_for_loggers() -> None:
    flat = REPORT.as_dict("teleport/")
    assert flat["teleport/loss_before"] == 1.25
    assert flat["teleport/accepted"] is True
    assert flat["teleport/guard_before"] is None
    assert flat["teleport/layers_moved"] == 1
    assert all(name.startswith("teleport/") for name in flat)
    fields = {f.name for f in dataclasses.fields(TeleportReport)} - {"layers", "cause"}
    assert set(REPORT.as_dict()) == fields | {"accepted", "reason", "layers_moved"}
    json.dumps(flat)


def test_text_names_verdict_numbers_and_reasons() -> None:
    text = str(REPORT)
    lines = text.splitlines()
    assert lines[0] == "teleport accepted"
    for part in ("1.25 -> 1.25", "0.5 -> 0.75", "radius 0.3", "0.125 s", "3.50 gradients"):
        assert part in lines[1]
    rows = {line.split()[0]: line for line in lines[3:]}
    assert set(rows) == {"body.weight", "stem.weight", "embedding.weight"}
    assert "1.0e-16 <= 1.0e-15" in rows["body.weight"]
    assert rows["stem.weight"].endswith("its null space is empty")
    assert rows["embedding.weight"].endswith("also used by gather (embedding)")
    assert "guard" not in text


def test_columns_are_aligned() -> None:
    lines = str(REPORT).splitlines()[2:]
    column = lines[0].index("why not")
    assert lines[2][column:] == STILL.reason
    assert lines[3][column:] == OUT.reason


def test_refusal_and_guard_are_said() -> None:
    refused = dataclasses.replace(REPORT, cause=Cause.GUARD, guard_before=2.0, guard_after=2.5)
    text = str(refused)
    assert text.startswith("teleport refused: the guard loss would be 2.5, without the move 2\n")
    assert "guard loss 2 -> 2.5" in text


def test_report_without_layers() -> None:
    bare = dataclasses.replace(REPORT, layers=())
    assert len(str(bare).splitlines()) == 3
    assert bare.as_dict()["layers_moved"] == 0


def test_plot_draws_every_layer() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = REPORT.plot()
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["body.weight", "stem.weight", "embedding.weight"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([9 / 17, 0, 0, 0.3, 0, 0])
    _, mine = plt.subplots()
    assert REPORT.plot(mine) is mine
    plt.close("all")
