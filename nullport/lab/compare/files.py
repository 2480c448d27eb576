"""Finding and reading the files of the public datasets.

A dataset lives in a folder of its own below the data folder, or directly in the data folder.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VARIABLE = "NULLPORT_DATA"
"""Environment variable that names the data folder."""


class MissingData(FileNotFoundError):  # noqa: N818
    """Files of a dataset were not found; the message says which, and where they come from."""


@dataclass(frozen=True)
class Source:
    """A public dataset.

    Attributes:
        folder: Folder of the dataset below the data folder.
        files: Names of its files.
        origin: How to get them, as lines of text.
    """

    folder: str
    files: tuple[str, ...]
    origin: str

    def find(self, data: str | Path | None = None) -> list[Path]:
        """Return the paths of the files, in order.

        Args:
            data: The data folder; the environment variable ``NULLPORT_DATA`` names it if None.

        Raises:
            MissingData: If no data folder is given or a file is missing.
        """
        root = data or os.environ.get(VARIABLE)
        if not root:
            raise MissingData(self._explain(self.files, "no data folder is given"))
        below = Path(root, self.folder)
        folder = below if below.is_dir() else Path(root)
        missing = tuple(name for name in self.files if not (folder / name).is_file())
        if missing:
            raise MissingData(self._explain(missing, f"not found in {folder}"))
        return [folder / name for name in self.files]

    def _explain(self, names: tuple[str, ...], problem: str) -> str:
        return (
            f"missing data: {', '.join(names)} ({problem})\n"
            f"Put {'it' if len(names) == 1 else 'them'} into DIR/{self.folder} and pass "
            f"--data DIR, or set {VARIABLE}=DIR. To get the dataset:\n{self.origin}"
        )


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


def read_csv(path: Path) -> dict[str, list[str]]:
    """Return the columns of a gzipped CSV file by the names in its first line."""
    names, *rows = csv.reader(read_text(path).splitlines())
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
