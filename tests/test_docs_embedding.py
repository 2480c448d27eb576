"""The page on embedding: its code runs as it stands, in at most 30 lines, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "embedding.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    pytest.importorskip("autograd")
    found: dict[str, Any] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), found)
    return found


def test_loss_stays_and_gradient_grows(names: dict[str, Any]) -> None:
    report = names["report"]
    assert report.accepted
    assert abs(report.loss_after - report.loss_before) <= 1e-12 * report.loss_before
    assert report.grad_norm_after > 1.2 * report.grad_norm_before
    assert [layer.moved > 0 for layer in report.layers] == [False, True, True]
    shifts = names["graph"].shifts
    loss = names["loss_fn"](names["graph"].weights(), shifts, lambda x: None)
    assert abs(float(loss) - report.loss_before) <= 1e-12 * report.loss_before


def test_direction(names: dict[str, Any]) -> None:
    """Against the gradient of the squared gradient norm by autograd's own double backward."""
    from autograd import grad

    weights, shifts, loss_fn = names["weights"], names["graph"].shifts, names["loss_fn"]

    def objective(weights: Any) -> Any:
        gradients = grad(loss_fn)(weights, shifts, lambda x: None)
        total = 0.0
        for g in gradients:
            total = total + (g**2).sum()
        return total / 2

    expected = grad(objective)(weights)[1]
    inputs: list[Any] = []
    loss_fn(weights, shifts, inputs.append)
    _, sigma, vt = np.linalg.svd(inputs[1])
    null = vt[len(sigma) :]
    expected = expected @ null.T @ null
    graph = names["AutogradGraph"](loss_fn, weights, samples=16)
    config = names["TeleportConfig"](radius=1e-3, max_loss_change=1.0)
    assert names["teleport"](graph, config).accepted
    change = graph.weights()[1] - weights[1]
    cosine = (expected * change).sum() / np.linalg.norm(expected) / np.linalg.norm(change)
    assert cosine > 1 - 1e-9


def test_training_gains(names: dict[str, Any]) -> None:
    assert names["teleported"] < 0.9 * names["plain"]


def test_at_most_30_lines() -> None:
    """The class and its imports."""
    graph = blocks()[0]
    assert graph.count("\nclass ") == graph.count("class AutogradGraph(FunctionalGraph):") == 1
    lines = [line for line in graph.splitlines() if line.strip()]
    assert len(lines) <= 30
