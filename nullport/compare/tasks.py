"""The tasks: real data, one small loader each.

Whatever is learned from data (means, scales, medians) is learned from the training part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from nullport.compare.extras import require
from nullport.compare.files import Source, read_csv, read_idx, read_npy, read_text
from nullport.compare.named import named
from nullport.compare.task import Array, Batch, Task

CONTEXT = 64
"""Characters or words that a language model sees at once."""

WORDS = 2000
"""Words that the vocabulary of words has, besides the one that stands for all others."""

HISTORY, HORIZON = 96, 24
"""Steps that the forecast sees, and steps it predicts."""


def load_task(name: str, data: str | Path | None = None) -> Task:
    """Load a task by name.

    Args:
        name: One of ``TASKS``, or ``FILE.py:FUNCTION``: a function that takes ``data`` and returns
            a :class:`Task` of your own.
        data: Folder of the datasets; the environment variable ``NULLPORT_DATA`` if None. Not
            needed for ``"digits"``.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If the function returns anything but a task.
        MissingData: If files of the dataset are missing; the message says how to get them.
        MissingExtra: If the task needs a package that is not installed.
    """
    if ":" in name:
        with named(name) as function:
            task = function(data)
        if not isinstance(task, Task):
            msg = f"{name}: returned a {type(task).__name__}, expected a nullport.compare.Task"
            raise TypeError(msg)
        return replace(task, name=name)
    if name not in TASKS:
        msg = f"invalid task: {name!r}; allowed: {', '.join(TASKS)} or FILE.py:FUNCTION"
        raise ValueError(msg)
    return TASKS[name](data)


def digits(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """Handwritten digits of 8 by 8 pixels, 1,437 to train on; they come with scikit-learn."""
    bunch = require("sklearn.datasets").load_digits()
    images = bunch.images[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order], bunch.target[order]
    return _images("digits", x[:1437], y[:1437], x[1437:], y[1437:])


def diabetes(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """How diabetes went on in a year, of 442 patients; the data comes with scikit-learn."""
    bunch = require("sklearn.datasets").load_diabetes()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x, y = bunch.data[order], bunch.target[order, None]
    return _regression("diabetes", x, y, 353)


MNIST = Source(
    "mnist",
    tuple(
        f"{part}-{what}-ubyte.gz"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ),
    "  the four original files of LeCun, Cortes and Burges, for instance from\n"
    "  https://ossci-datasets.s3.amazonaws.com/mnist/",
)


def mnist(data: str | Path | None = None) -> Task:
    """Handwritten digits of 28 by 28 pixels, 60,000 to train on."""
    x, y, valid_x, valid_y = map(read_idx, MNIST.find(data))
    return _images("mnist", x[..., None], y, valid_x[..., None], valid_y)


CIFAR10 = Source(
    "cifar10",
    tuple(
        f"{part}_{what}.npy.xz"
        for part in ("train_first10000", "test_first2000")
        for what in ("images", "labels")
    ),
    "  https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (Krizhevsky, 2009): data_batch_1\n"
    "  and the first 2,000 images of test_batch as uint8 arrays (n, 32, 32, 3), their labels as\n"
    "  uint8 arrays (n,), each written by numpy.save and compressed by xz",
)


def cifar10(data: str | Path | None = None) -> Task:
    """Small colour photographs in ten classes, the first 10,000 to train on."""
    return _images("cifar10", *map(read_npy, CIFAR10.find(data)))


SHAKESPEARE = Source(
    "tinyshakespeare",
    ("input.txt.gz",),
    "  curl -L https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    "input.txt | gzip > input.txt.gz",
)


def shakespeare(data: str | Path | None = None) -> Task:
    """Characters of Shakespeare's plays, to be predicted one by one; the last tenth validates."""
    text = np.array(list(read_text(*SHAKESPEARE.find(data))))
    letters, codes = np.unique(text, return_inverse=True)
    x, y = _spans(codes)
    cut = len(x) * 9 // 10
    return Task("shakespeare", "language", len(letters), x[:cut], y[:cut], x[cut:], y[cut:])


WIKITEXT = Source(
    "wikitext2_valid_test",
    ("valid.txt.gz", "test.txt.gz"),
    "  for f in valid test; do curl -L https://raw.githubusercontent.com/pytorch/examples/main/"
    "word_language_model/data/wikitext-2/$f.txt | gzip > $f.txt.gz; done",
)


def wikitext(data: str | Path | None = None) -> Task:
    """Words of Wikipedia: the validation part of WikiText-2 to train on, its test part to validate.

    The ``WORDS`` most frequent words have a number of their own, all others share one.
    """
    train, valid = (
        np.array(read_text(path).replace("\n", " <eos> ").split()) for path in WIKITEXT.find(data)
    )
    words, counts = np.unique(train, return_counts=True)
    known = np.sort(words[np.argsort(-counts, kind="stable")[:WORDS]])

    def codes(text: Array) -> Array:
        place = np.minimum(np.searchsorted(known, text), len(known) - 1)
        return np.where(known[place] == text, place, len(known))

    return Task(
        "wikitext", "language", len(known) + 1, *_spans(codes(train)), *_spans(codes(valid))
    )


ETT = Source(
    "ett",
    ("ETTh1.csv.gz",),
    "  curl -L https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv"
    " | gzip > ETTh1.csv.gz",
)


def ett(data: str | Path | None = None) -> Task:
    """Seven hourly readings of a power transformer: the next day from the last four.

    The split is the customary one in time: 12 months to train on, the next 4 to validate.
    """
    columns = read_csv(*ETT.find(data))
    series = np.array([columns[name] for name in columns if name != "date"], np.float32).T
    month = 30 * 24
    series = _scaled(series, series[: 12 * month])
    train, valid = series[: 12 * month], series[12 * month - HISTORY : 16 * month]
    return Task("ett", "regression", HORIZON * series.shape[1], *_windows(train), *_windows(valid))


HOUSING = Source(
    "california_housing",
    ("housing.csv.gz",),
    "  curl -L https://raw.githubusercontent.com/ageron/handson-ml2/master/datasets/housing/"
    "housing.csv | gzip > housing.csv.gz",
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


TASKS: dict[str, Callable[[str | Path | None], Task]] = {
    "digits": digits,
    "diabetes": diabetes,
    "mnist": mnist,
    "cifar10": cifar10,
    "ett": ett,
    "housing": housing,
    "shakespeare": shakespeare,
    "wikitext": wikitext,
}
"""Loader of each task; takes the data folder."""


def _images(name: str, x: Array, y: Array, valid_x: Array, valid_y: Array) -> Task:
    """Make a classification task of images (n, height, width, channels), scaled per channel."""
    channels = x[:: 1 + len(x) // 10_000].reshape(-1, x.shape[-1])  # enough for two moments
    scaled, valid_scaled = _scaled(x, channels), _scaled(valid_x, channels)
    labels, valid_labels = y.astype(np.int64), valid_y.astype(np.int64)
    return Task(
        name, "classification", int(y.max()) + 1, scaled, labels, valid_scaled, valid_labels
    )


def _regression(name: str, features: Array, y: Array, cut: int) -> Task:
    """Make a regression task of features (n, d) and targets (n, 1), the first ``cut`` to train."""
    x, y = _scaled(features, features[:cut]), _scaled(y, y[:cut])
    return Task(name, "regression", y.shape[1], x[:cut], y[:cut], x[cut:], y[cut:])


def _spans(codes: Array) -> Batch:
    """Cut a text of numbers (length,) into inputs and next tokens, (n, CONTEXT) int64 each."""
    count = (len(codes) - 1) // CONTEXT
    x, y = (codes[i : i + count * CONTEXT].reshape(count, CONTEXT) for i in (0, 1))
    return x.astype(np.int64), y.astype(np.int64)


def _scaled(values: Array, reference: Array) -> Array:
    """Subtract the mean of the rows of ``reference``, divide by their standard deviation."""
    mean, std = reference.mean(axis=0, dtype=np.float64), reference.std(axis=0, dtype=np.float64)
    working = np.result_type(values.dtype, np.float32)  # large images need no float64
    scaled: Array = (values - mean.astype(working)) / np.where(std > 0, std, 1).astype(working)
    return scaled.astype(np.float32)


def _windows(series: Array) -> Batch:
    """Cut (steps, channels) into inputs (n, HISTORY, channels) and flat targets (n, -1)."""
    view = np.lib.stride_tricks.sliding_window_view(series, HISTORY + HORIZON, axis=0)
    windows = np.ascontiguousarray(view.transpose(0, 2, 1))
    return windows[:, :HISTORY], windows[:, HISTORY:].reshape(len(windows), -1)
