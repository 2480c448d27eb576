"""The page on training loops: every piece of code runs as it stands, and teleports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.installed import installed

PAGE = Path(__file__).parents[1] / "docs" / "training-loop.md"
PIECE = re.compile(r"^## (?P<title>[^\n]+)$|^```python\n(?P<code>.*?)^```", re.M | re.S)
NEEDS = {
    "Lightning": ["lightning"],
    "Fabric": ["lightning"],
    "Hugging Face": ["transformers", "accelerate"],
    "accelerate": ["accelerate"],
    "skorch": ["skorch"],
    "ignite": ["ignite"],
}
"""Packages, by the title of the section."""


def pieces() -> list[tuple[str, str]]:
    """Return the title above each piece of code, and the code."""
    found, title = [], "start"
    for match in PIECE.finditer(PAGE.read_text("utf-8")):
        title = match["title"] or title
        if match["code"] is not None:
            found.append((title, match["code"]))
    return found


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed")
@pytest.mark.filterwarnings("default")  # what other libraries warn of themselves
@pytest.mark.parametrize("title", [title for title, _ in pieces()][1:])
def test_the_code_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    (_, start), *rest = pieces()
    exec(compile(start, str(PAGE), "exec"), names)
    assert names["teleporter"].history
    missing = [package for package in NEEDS.get(title, ()) if not installed(package)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    exec(compile(dict(rest)[title], str(PAGE), "exec"), names)
    last = names["teleporter"]
    assert last.history or title in ("Checkpoints", "Accumulation")


def test_every_way_to_log_and_resume_is_on_the_page() -> None:
    titles = {title for title, _ in pieces()}
    assert {"Checkpoints", "Clipping", "Accumulation", "Mixed precision", "Logging"} <= titles
    assert {"Lightning", "Hugging Face", "accelerate", "Fabric", "skorch", "ignite"} <= titles
