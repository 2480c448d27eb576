"""Tasks of images: ten things to be told apart, or pixels to be returned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.compare.files import Source, read_idx, read_npy
from nullport.lab.compare.scale import scaled
from nullport.lab.compare.task import Array, Task


def digits(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """Handwritten digits of 8 by 8 pixels, 1,437 to train on; they come with scikit-learn."""
    bunch = require("sklearn.datasets").load_digits()
    images = bunch.images[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order], bunch.target[order]
    return _images("digits", x[:1437], y[:1437], x[1437:], y[1437:])


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


def mnist_autoencoder(data: str | Path | None = None) -> Task:
    """The same digits as pixels, which are to be returned: a regression onto the inputs."""
    images = mnist(data)
    x, valid_x = (a.reshape(len(a), -1) for a in (images.inputs, images.valid_inputs))
    return Task("mnist_autoencoder", "regression", x.shape[1], x, x, valid_x, valid_x)


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


def _images(name: str, x: Array, y: Array, valid_x: Array, valid_y: Array) -> Task:
    """Make a classification task of images (n, height, width, channels), scaled per channel."""
    channels = x[:: 1 + len(x) // 10_000].reshape(-1, x.shape[-1])  # enough for two moments
    inputs, valid_inputs = scaled(x, channels), scaled(valid_x, channels)
    labels, valid_labels = y.astype(np.int64), valid_y.astype(np.int64)
    return Task(
        name, "classification", int(y.max()) + 1, inputs, labels, valid_inputs, valid_labels
    )
