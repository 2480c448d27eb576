"""The page on grids: its problem and its grid run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nullport.lab.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "grids.md"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert found is not None
    return found[1]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("my_problem.py").write_text(block("python"))
    Path("waves.toml").write_text(block("toml").replace("seeds = 5", "seeds = 2"))
    assert main(["suite", "waves.toml", "--report", "waves.md", "--quiet"]) == 0
    page = Path("waves.md").read_text("utf-8")
    for name in ("nullport", "paper", "slp", "my_problem.py:waves, mlp"):
        assert name in page
    assert Path("waves-changes.png").stat().st_size > 5000
