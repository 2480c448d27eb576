"""Reading the files of the public datasets."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_text(path: Path) -> str:
    """Return the text of a gzipped file."""
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of a gzipped idx file of bytes: 4 bytes of type and rank, then the shape."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_npy(path: Path) -> NDArray[np.uint8]:
    """Return the array of an xz-compressed ``.npy`` file."""
    array: NDArray[np.uint8] = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    return array


def as_npy(array: NDArray[np.uint8]) -> bytes:
    """Return what :func:`read_npy` reads."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array))
    return lzma.compress(content.getvalue())


def read_csv(path: Path) -> dict[str, list[str]]:
    """Return the columns of a gzipped CSV file by the names in its first line."""
    names, *rows = csv.reader(read_text(path).splitlines())
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
