"""The page on arrays: its code runs as it stands and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "arrays.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    text = PAGE.read_text("utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), found)
    return found


def test_the_loop_trains_and_teleports(names: dict[str, Any]) -> None:
    assert float(names["loss"]) < 0.6  # from log 3
    assert names["teleporter"].history
    assert names["params"]["0"]["weight"].dtype == np.float32


def test_functions_and_objects(names: dict[str, Any]) -> None:
    graph, report = names["graph"], names["report"]
    assert graph.params is not names["weights"]
    assert np.array_equal(graph.params["W2"], names["weights"]["W2"])
    assert report.accepted
    assert abs(report.loss_after - report.loss_before) <= 1e-12 * report.loss_before
    assert [layer.name for layer in report.layers if layer.moved] == ["2.Affine.W"]
