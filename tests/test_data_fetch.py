"""Datasets from a server of this machine: fetched once, checked; errors say what else to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport.lab.cli import main
from nullport.lab.compare import images, tasks
from nullport.lab.compare.files import read_npy
from nullport.lab.compare.images import unpack_cifar10
from nullport.lab.compare.sources import Download, Source, as_it_is, gzipped

TEXT = b"To be, or not to be" * 100


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server and what it was asked for."""
    pytest.importorskip("pooch")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "input.txt").write_bytes(TEXT)
    asked: list[str] = []
    handler = type("Handler", (Quiet,), {"asked": asked})
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))
    ) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/input.txt", asked
        served.shutdown()
        thread.join()


def declare(monkeypatch: pytest.MonkeyPatch, url: str, checksum: str | None = None) -> Source:
    """Have the dataset of a task come from somewhere else."""
    known = checksum or hashlib.sha256(TEXT).hexdigest()
    downloads = (
        Download(url, known, gzipped("input.txt.gz")),
        Download(url, known, as_it_is("input.txt")),
    )
    source = Source("shakespeare", "tinyshakespeare", ("input.txt.gz", "input.txt"), downloads)
    monkeypatch.setitem(tasks.SOURCES, "shakespeare", source)
    return source


def test_a_dataset_is_fetched_once_and_found(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    url, asked = server
    source = declare(monkeypatch, url)
    data = tmp_path / "data"
    for _ in range(2):
        assert main(["data", "fetch", "shakespeare", "--data", str(data)]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"shakespeare: {data / 'tinyshakespeare'}\n"
    assert len(asked) == 2
    packed, plain = source.find(data)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() == TEXT
    assert len(list(packed.parent.iterdir())) == 2


def test_without_a_folder_it_goes_to_the_cache(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import pooch

    monkeypatch.delenv("NULLPORT_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    declare(monkeypatch, server[0])
    assert main(["data", "list", "shakespeare"]) == 0
    assert capsys.readouterr().out == f"shakespeare: not in {tmp_path / 'cache/nullport'}\n"
    assert main(["data", "fetch", "shakespeare", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["data", "list", "shakespeare"]) == 0
    there = tmp_path / "cache/nullport/tinyshakespeare"
    assert capsys.readouterr().out == f"shakespeare: {there}\n"


def test_another_file_than_it_was_is_refused(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    declare(monkeypatch, server[0], "0" * 64)
    assert main(["data", "fetch", "shakespeare", "--data", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert "shakespeare cannot be fetched" in said
    assert "does not match the known hash" in said
    assert not (tmp_path / "data").exists()


def test_no_network_is_one_line_that_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pooch")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a port that nobody answers on
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/input.txt"
    declare(monkeypatch, url)
    assert main(["data", "fetch", "shakespeare", "--data", str(tmp_path), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert url in said
    assert "Connection refused" in said
    assert "input.txt.gz, input.txt in DIR/tinyshakespeare and --data DIR" in said
    assert main(["data", "fetch", "shakespear"]) == 2
    assert "invalid dataset: shakespear; allowed: mnist, cifar10" in capsys.readouterr().err


def test_every_dataset_has_downloads_for_its_files() -> None:
    for name, source in tasks.SOURCES.items():
        assert name in tasks.TASKS
        assert all(len(d.sha256) == 64 and d.url.startswith("https://") for d in source.downloads)
        if name != "cifar10":
            assert len(source.files) == len(source.downloads)


def test_cifar10_is_made_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an archive of the original's layout: rows of planes, red first."""
    monkeypatch.setattr(images, "CIFAR10_PARTS", {"data_batch_1": "train_first3"})
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    batch = {b"data": pixels.reshape(4, -1), b"labels": [3, 1, 4, 1]}
    content = pickle.dumps(batch)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    found = dict(unpack_cifar10(tmp_path / "a.tar.gz"))
    assert list(found) == ["train_first3_images.npy.xz", "train_first3_labels.npy.xz"]
    for name, made in found.items():
        (tmp_path / name).write_bytes(made)
    image = read_npy(tmp_path / "train_first3_images.npy.xz")
    assert image.shape == (3, 32, 32, 3)
    assert image[2, 5, 7].tolist() == pixels[2, :, 5, 7].tolist()
    labels = np.load(io.BytesIO(lzma.decompress(found["train_first3_labels.npy.xz"])))
    assert (labels.tolist(), labels.dtype) == ([3, 1, 4], np.uint8)
