"""Tasks whose data is computed: a sum over a long sequence, and a differential equation.

``adding`` (Hochreiter and Schmidhuber, 1997): a sequence of pairs (a number, a mark); two steps are
marked, and their numbers are to be added. (n, STEPS, 2) -> (n, 1).

``poisson``: find u with ``u_xx + u_yy = f`` inside the unit square and ``u = 0`` at its border, for
``u = sin(pi x) sin(pi y)``. An input is a point (x, y) and a mark, 1 at the border; the target is
``f / SCALE`` inside and 0 at the border. A network that solves it returns the left sides, as the
model ``pinn`` does. (n, 3) -> (n, 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nullport.lab.compare.task import Array, Batch, Task

STEPS = 50
"""Length of a sequence of ``adding``."""

SCALE = 10.0
"""What the equation of ``poisson`` is divided by, so that both of its sides are of size 1."""


def adding(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """Add the two numbers of a sequence that are marked: 8,000 sequences to train on."""
    rng = np.random.default_rng(0)
    return Task("adding", "regression", 1, *_sequences(rng, 8000), *_sequences(rng, 2000))


def _sequences(rng: np.random.Generator, n: int) -> Batch:
    """Return sequences with a mark in each half, and sums."""
    x, rows = np.zeros((n, STEPS, 2), np.float32), np.arange(n)
    x[:, :, 0] = rng.random((n, STEPS))
    marks = [rng.integers(0, STEPS // 2, n), rng.integers(STEPS // 2, STEPS, n)]
    for mark in marks:
        x[rows, mark, 1] = 1
    total: Array = sum(x[rows, mark, 0] for mark in marks)[:, None]
    return x, total


def poisson(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """Solve Poisson's equation on the unit square: 8,000 points inside and at the border."""
    rng = np.random.default_rng(0)
    return Task("poisson", "regression", 1, *_points(rng, 8000), *_points(rng, 2000))


def _points(rng: np.random.Generator, n: int) -> Batch:
    """Return points, every third of which lies at the border, and right sides."""
    points, border = rng.random((n, 2)), np.arange(n) % 3 == 0
    side, at = rng.integers(0, 2, n), rng.integers(0, 2, n)  # which coordinate is 0 or 1
    points[border, side[border]] = at[border]
    right = -2 * np.pi**2 * np.sin(np.pi * points).prod(1) / SCALE
    x = np.concatenate([points, border[:, None]], 1).astype(np.float32)
    return x, np.where(border, 0, right)[:, None].astype(np.float32)
