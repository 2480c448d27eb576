"""Progress of a grid as a table: a line per task and model, and what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nullport.lab.compare.extras import require
from nullport.lab.progress import seldom
from nullport.lab.suite.runner import Progress

HEAD = ("task", "model", "runs", "diverged", "teleports", "refused", "lowest loss", "seconds a run")


@dataclass
class Line:
    """What is known of the runs of one task and model."""

    runs: int = 0
    diverged: int = 0
    accepted: int = 0
    refused: int = 0
    lowest: float = float("inf")
    seconds: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a run."""
        self.runs += 1
        self.diverged += not record["finite"]
        self.accepted += record["accepted"]
        self.refused += record["refused"]
        self.seconds += record["seconds"]
        if record["finite"]:
            self.lowest = min(self.lowest, record["final_loss"])

    def cells(self) -> list[str]:
        """Return the cells of the table after task and model."""
        counts = map(str, (self.runs, self.diverged, self.accepted, self.refused))
        return [*counts, f"{self.lowest:.4g}", f"{self.seconds / self.runs:.2g}"]


@dataclass
class Board:
    """What the table shows."""

    stage: str = ""
    done: int = 0
    total: int = 0
    fresh: int = 0
    since: float = field(default_factory=time.monotonic)
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)

    def tell(self, stage: str, done: int, total: int, record: Mapping[str, Any] | None) -> None:
        """Take in a record; a new stage starts the clock anew."""
        if stage != self.stage:
            self.stage, self.fresh, self.since = stage, 0, time.monotonic()
        self.done, self.total = done, total
        self.fresh += record is not None
        if record is not None and "spent" in record:  # a run
            settings = record["settings"]
            self.lines.setdefault((settings["task"], settings["model"]), Line()).add(record)

    @property
    def title(self) -> str:
        """How far the stage is, and how long the rest takes if it goes on so."""
        text = f"{self.stage}: {self.done} of {self.total}"
        if not self.fresh or self.done == self.total:
            return text
        left = (time.monotonic() - self.since) / self.fresh * (self.total - self.done)
        return f"{text}, {left / 60:.0f} min left" if left > 90 else f"{text}, {left:.0f} s left"

    def table(self) -> Any:
        """Return a ``rich`` table."""
        sheet = require("rich.table").Table(title=self.title, title_justify="left")
        for i, name in enumerate(HEAD):
            sheet.add_column(name, justify="left" if i < 2 else "right")
        for names, line in self.lines.items():
            sheet.add_row(*names, *line.cells())
        return sheet


@contextmanager
def live(*, quiet: bool) -> Iterator[Progress]:
    """Show the table on stderr while runs are made, and yield what takes in their records.

    Where a log is kept, there is a line now and then, and one at the end of each stage.

    Raises:
        MissingExtra: If rich is not installed.
    """
    board = Board()
    if quiet:
        yield board.tell
        return
    if not sys.stderr.isatty():
        yield _log(board)
        return
    console = require("rich.console").Console(stderr=True)
    with require("rich.live").Live(console=console, refresh_per_second=2) as shown:

        def tell(stage: str, done: int, total: int, record: Mapping[str, Any] | None) -> None:
            board.tell(stage, done, total, record)
            shown.update(board.table())

        yield tell


def _log(board: Board) -> Progress:
    due = seldom()

    def tell(stage: str, done: int, total: int, record: Mapping[str, Any] | None) -> None:
        board.tell(stage, done, total, record)
        if due() or done == total:
            print(board.title, file=sys.stderr, flush=True)

    return tell
