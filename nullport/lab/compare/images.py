"""Tasks of images: ten things to be told apart, or pixels to be returned."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nullport.lab.compare.extras import require
from nullport.lab.compare.files import as_npy, read_idx, read_npy
from nullport.lab.compare.scale import scaled
from nullport.lab.compare.sources import Download, Source, as_it_is
from nullport.lab.compare.task import Array, Task


def digits(data: str | Path | None = None) -> Task:  # noqa: ARG001
    """Handwritten digits of 8 by 8 pixels, 1,437 to train on; they come with scikit-learn."""
    bunch = require("sklearn.datasets").load_digits()
    images = bunch.images[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order], bunch.target[order]
    return _images("digits", x[:1437], y[:1437], x[1437:], y[1437:])


MNIST_HOST = "https://ossci-datasets.s3.amazonaws.com/mnist"

MNIST_FILES = {
    "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""The files of LeCun, Cortes and Burges, with their checksums."""

MNIST = Source(
    "mnist",
    "mnist",
    tuple(f"{part}-ubyte.gz" for part in MNIST_FILES),
    tuple(
        Download(f"{MNIST_HOST}/{part}-ubyte.gz", checksum, as_it_is(f"{part}-ubyte.gz"))
        for part, checksum in MNIST_FILES.items()
    ),
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


CIFAR10_PARTS = {"data_batch_1": "train_first10000", "test_batch": "test_first2000"}
"""Batches of the archive that are used, and what the files that are made of them begin with."""


def unpack_cifar10(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield images (n, 32, 32, 3) and labels (n,) of both parts, as xz-compressed ``.npy`` files.

    The archive holds pickles, which run what they name: its checksum has to be known.
    """
    with tarfile.open(path) as archive:
        for batch, name in CIFAR10_PARTS.items():
            member = archive.extractfile(f"cifar-10-batches-py/{batch}")
            assert member is not None  # a file of an archive that is known
            content = pickle.load(member, encoding="bytes")
            count = int(name.partition("first")[2])
            images = content[b"data"][:count].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = np.array(content[b"labels"][:count], np.uint8)
            yield f"{name}_images.npy.xz", as_npy(images)
            yield f"{name}_labels.npy.xz", as_npy(labels)


CIFAR10 = Source(
    "cifar10",
    "cifar10",
    tuple(
        f"{part}_{what}.npy.xz" for part in CIFAR10_PARTS.values() for what in ("images", "labels")
    ),
    (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            unpack_cifar10,
        ),
    ),
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
