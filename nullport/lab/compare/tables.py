"""Tasks of regression: features of a sample, or a series in time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.compare.files import read_csv
from nullport.lab.compare.scale import scaled
from nullport.lab.compare.sources import Download, Source, gzipped
from nullport.lab.compare.task import Array, Batch, Task

HISTORY, HORIZON = 96, 24
"""Steps that the forecast sees, and steps it predicts."""


def diabetes(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """How diabetes went on in a year, of 442 patients; the data comes with scikit-learn."""
    bunch = require("sklearn.datasets").load_diabetes()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x, y = bunch.data[order], bunch.target[order, None]
    return _regression("diabetes", x, y, 353)


ETT = Source(
    "ett",
    "ett",
    ("ETTh1.csv.gz",),
    (
        Download(
            "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/"
            "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTh1.csv",
            "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
            gzipped("ETTh1.csv.gz"),
        ),
    ),
)


def ett(data: str | Path | None = None) -> Task:
    """Seven hourly readings of a power transformer: the next day from the last four.

    The split is the customary one in time: 12 months to train on, the next 4 to validate.
    """
    columns = read_csv(*ETT.find(data))
    series = np.array([columns[name] for name in columns if name != "date"], np.float32).T
    month = 30 * 24
    series = scaled(series, series[: 12 * month])
    train, valid = series[: 12 * month], series[12 * month - HISTORY : 16 * month]
    return Task("ett", "regression", HORIZON * series.shape[1], *_windows(train), *_windows(valid))


HOUSING = Source(
    "housing",
    "california_housing",
    ("housing.csv.gz",),
    (
        Download(
            "https://raw.githubusercontent.com/ageron/handson-ml2/"
            "1e2115277b50f6c584cd668fa30e3af309a5b136/datasets/housing/housing.csv",
            "8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e",
            gzipped("housing.csv.gz"),
        ),
    ),
)


def housing(data: str | Path | None = None) -> Task:
    """Logarithm of house prices in Californian districts, from the census of 1990."""
    columns = read_csv(*HOUSING.find(data))
    price = np.log(np.array(columns.pop("median_house_value"), np.float64))[:, None]
    places = np.array(columns.pop("ocean_proximity"))
    numbers = np.array([[float(v or math.nan) for v in column] for column in columns.values()]).T
    order = np.random.default_rng(0).permutation(len(price))
    cut = len(order) * 8 // 10
    numbers = np.where(np.isnan(numbers), np.nanmedian(numbers[order[:cut]], axis=0), numbers)
    features = np.hstack([numbers, places[:, None] == np.unique(places)])[order]
    return _regression("housing", features, price[order], cut)


def _regression(name: str, features: Array, y: Array, cut: int) -> Task:
    """Make a regression task of features (n, d) and targets (n, 1), the first ``cut`` to train."""
    x, y = scaled(features, features[:cut]), scaled(y, y[:cut])
    return Task(name, "regression", y.shape[1], x[:cut], y[:cut], x[cut:], y[cut:])


def _windows(series: Array) -> Batch:
    """Cut (steps, channels) into inputs (n, HISTORY, channels) and flat targets (n, -1)."""
    view = np.lib.stride_tricks.sliding_window_view(series, HISTORY + HORIZON, axis=0)
    windows = np.ascontiguousarray(view.transpose(0, 2, 1))
    return windows[:, :HISTORY], windows[:, HISTORY:].reshape(len(windows), -1)
