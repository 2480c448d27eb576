"""The public datasets: where their files are, and how they are fetched.

A dataset lives in a folder of its own below the data folder, or directly in the data folder. What
is fetched is checked against its checksum, and goes where it is found again.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullport.lab.compare.extras import MissingExtra, require
from nullport.lab.output import write

VARIABLE = "NULLPORT_DATA"
"""Environment variable that names the data folder."""

TIMEOUT = 30
"""Seconds to wait for a server."""


class MissingData(FileNotFoundError):  # noqa: N818
    """Files of a dataset are not there, or cannot be fetched; the message says which, and why."""


@dataclass(frozen=True)
class Download:
    """A file on the network, and the files of a dataset that are made of it.

    Attributes:
        url: Its address.
        sha256: Its checksum.
        unpack: Returns names and contents, from its path.
    """

    url: str
    sha256: str
    unpack: Callable[[Path], Iterable[tuple[str, bytes]]]


def as_it_is(name: str) -> Callable[[Path], Iterable[tuple[str, bytes]]]:
    """Keep a download under a name."""
    return lambda path: [(name, path.read_bytes())]


def gzipped(name: str) -> Callable[[Path], Iterable[tuple[str, bytes]]]:
    """Compress a download, and keep it under a name."""
    return lambda path: [(name, gzip.compress(path.read_bytes(), mtime=0))]


@dataclass(frozen=True)
class Source:
    """A public dataset.

    Attributes:
        task: Name of the task that it is fetched by.
        folder: Folder of the dataset below the data folder.
        files: Names of its files.
        downloads: What they are made of.
    """

    task: str
    folder: str
    files: tuple[str, ...]
    downloads: tuple[Download, ...]

    def find(self, data: str | Path | None = None) -> list[Path]:
        """Return the paths of the files, in order.

        Args:
            data: The data folder; if None, the environment variable ``NULLPORT_DATA`` names it,
                else it is where :meth:`fetch` puts what it fetches.

        Raises:
            MissingData: If a file is missing.
        """
        root = folder_of(data)
        if root is None:
            raise MissingData(self._explain(self.files, "no data folder is given"))
        below = root / self.folder
        folder = below if below.is_dir() else root
        missing = tuple(name for name in self.files if not (folder / name).is_file())
        if missing:
            raise MissingData(self._explain(missing, f"not found in {folder}"))
        return [folder / name for name in self.files]

    def fetch(self, data: str | Path | None = None, bar: Any = None) -> list[Path]:
        """Return the paths of the files, downloaded into the data folder if they are not there.

        Args:
            data: As for :meth:`find`.
            bar: Shows the progress of a download, as :class:`pooch.HTTPDownloader` takes it.

        Raises:
            MissingData: If a file cannot be downloaded, or is another than it was.
            MissingExtra: If pooch is not installed.
            OSError: If a file cannot be written.
        """
        require("pooch")
        try:
            return self.find(data)
        except MissingData:
            root = folder_of(data)
            assert root is not None  # pooch is installed
        folder = root / self.folder
        for download in self.downloads:
            with tempfile.TemporaryDirectory() as scratch:
                fetched = self._downloaded(download, scratch, bar)
                folder.mkdir(parents=True, exist_ok=True)
                for name, content in download.unpack(fetched):
                    write(folder / name, content)
        return self.find(data)

    def _downloaded(self, download: Download, scratch: str, bar: Any) -> Path:
        pooch = require("pooch")
        pooch.get_logger().setLevel("WARNING")
        loader = pooch.HTTPDownloader(progressbar=bar or False, timeout=TIMEOUT)
        given = {"fname": "download", "path": scratch, "downloader": loader}
        try:
            return Path(pooch.retrieve(download.url, f"sha256:{download.sha256}", **given))
        except (OSError, ValueError) as error:  # no network, or another checksum
            reason = str(error).splitlines()[0].rpartition("Caused by ")[2]
            msg = (
                f"{self.task} cannot be fetched: {download.url}: {reason}; allowed: a network, or "
                f"{', '.join(self.files)} in DIR/{self.folder} and --data DIR"
            )
            raise MissingData(msg) from error

    def _explain(self, names: tuple[str, ...], problem: str) -> str:
        return (
            f"missing data: {', '.join(names)} ({problem}); run nullport data fetch {self.task}, "
            f"or put {'it' if len(names) == 1 else 'them'} into DIR/{self.folder} and pass "
            f"--data DIR or set {VARIABLE}=DIR ({self.downloads[0].url})"
        )


def folder_of(data: str | Path | None) -> Path | None:
    """Return the data folder, None if none is given and pooch is not there to name one."""
    named = data or os.environ.get(VARIABLE)
    if named:
        return Path(named)
    try:
        return Path(require("pooch").os_cache("nullport"))
    except MissingExtra:
        return None
