"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nullport.lab import output


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    output.write(path, "first\n")
    assert path.stat().st_mode & 0o777 == 0o666 & ~output._umask()
    path.chmod(0o640)
    output.write(str(path), "sécond\n")
    assert path.read_bytes() == "sécond\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_fails_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "page.md"
    path.write_text("first")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*page.md'") as caught:
        output.write(path, "second")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("first")
    link.symlink_to(real)
    output.write(link, "second")
    assert real.read_text() == "second"
    assert link.is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_is_written_to(tmp_path: Path) -> None:
    link = tmp_path / "numbers.json"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*numbers.json'"):
        output.write(link, "1")
    assert os.readlink(link) == "/dev/full"
    output.write(os.devnull, "1")


@pytest.mark.skipif(sys.platform == "win32", reason="folders are no files")
def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        output.write(tmp_path, "1")


def test_a_picture_has_the_format_of_its_suffix(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    output.save(figure, tmp_path / "a.png")
    output.save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ValueError, match="'txt' is not supported"):
        output.save(figure, tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
