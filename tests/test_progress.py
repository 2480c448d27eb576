"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import re
import sys

import pytest

from nullport.lab import progress
from nullport.lab.suite.live import live


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("nullport.lab.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar(200.0) as tell:
        for second in range(0, 100, 10):
            clock[0] = second
            tell(second, "seed 0, teleport")
    assert capsys.readouterr().err.splitlines() == [
        "seed 0, teleport: 15 % of all, about 170 s left",
        "seed 0, teleport: 30 % of all, about 140 s left",
        "seed 0, teleport: 45 % of all, about 110 s left",
    ]
    with progress.bar(200.0, quiet=True) as tell:
        clock[0] = 1000.0
        tell(100.0, "x")
    with progress.stages(2) as begin:
        begin("loading torch")
    assert capsys.readouterr().err == ""


def test_a_grid_has_a_line_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with live(quiet=False) as tell:
        tell("tuning", 0, 4, None)
        clock[0] = 40.0
        tell("tuning", 2, 4, None)
    assert capsys.readouterr().err == "tuning: 2 of 4\n"


@pytest.mark.parametrize("coloured", [True, False])
def test_a_terminal_has_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress.bar(10.0) as tell:
        tell(5.0, "seed 0")
    with progress.stages(3) as begin:
        begin("loading [torch]")
    text = shown.getvalue()
    assert "seed 0" in text
    assert "loading [torch]" in text  # no markup
    assert "left:" in text
    assert text.endswith("\x1b[2K")  # the line is wiped
    assert bool(re.search(r"\x1b\[[\d;]*3[1-8]", text)) == coloured
