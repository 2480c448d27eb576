"""How far work is and how long the rest takes, on stderr.

On a terminal a bar that goes away; where a log is kept, a plain line every ``EVERY`` seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from nullport.lab.compare.extras import MissingExtra, require

EVERY = 30.0
"""Seconds between lines in a log."""

Tell = Callable[[float, str], None]
"""Told how much is done, and what is being done."""


@contextlib.contextmanager
def bar(total: float, *, quiet: bool = False) -> Iterator[Tell]:
    """Show the progress of long work, and yield the function that moves it.

    Args:
        total: How much there is to do.
        quiet: Whether to show nothing.
    """
    if quiet:
        yield _nothing
    elif not sys.stderr.isatty():
        yield _Log(total).tell
    else:
        with _terminal(total) as tell:
            yield tell


@contextlib.contextmanager
def stages(count: int) -> Iterator[Callable[[str], None]]:
    """Show on a terminal which of a few stages is reached; yield what begins the next one.

    Without rich, or where there is no terminal, nothing is shown.
    """
    begun = 0

    def begin(tell: Tell, name: str) -> None:
        nonlocal begun
        tell(begun, name)
        begun += 1

    with contextlib.ExitStack() as stack:
        tell: Tell = _nothing
        if sys.stderr.isatty():
            with contextlib.suppress(MissingExtra):
                tell = stack.enter_context(_terminal(count))
        yield lambda name: begin(tell, name)


@contextlib.contextmanager
def _terminal(total: float) -> Iterator[Tell]:
    rich: Any = require("rich.progress")
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left:"),
        rich.TimeRemainingColumn(),
    )
    console = require("rich.console").Console(stderr=True)
    with rich.Progress(*columns, console=console, transient=True) as shown:
        line = shown.add_task("", total=total)
        yield lambda done, name: shown.update(line, completed=done, description=name)


class _Log:
    """Lines in a log."""

    def __init__(self, total: float) -> None:
        self._total, self._since, self._due = total, time.monotonic(), seldom()

    def tell(self, done: float, name: str) -> None:
        """Print a line, unless the last one is recent."""
        if done <= 0 or not self._due():
            return
        left = (time.monotonic() - self._since) * (self._total - done) / done
        share = 100 * done / self._total
        print(f"{name}: {share:.0f} % of all, about {left:.0f} s left", file=sys.stderr, flush=True)


def seldom(seconds: float | None = None) -> Callable[[], bool]:
    """Return a function that is true where it last was so long ago; ``EVERY`` seconds if None."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < (EVERY if seconds is None else seconds):
            return False
        last = now
        return True

    return due


def _nothing(done: float, name: str) -> None:
    del done, name
