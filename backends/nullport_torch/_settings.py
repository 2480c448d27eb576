"""Settings of the process that teleports need: shared by all threads, then put back.

The first thread that wishes for a setting makes it, the last one that no longer does undoes it. A
setting that is what is wished for already is not touched.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import torch

_LOCK = threading.RLock()


class _Setting:
    """A setting of the process, and how many wish for it now."""

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        """``make`` makes the setting, and returns what undoes it."""
        self._make, self._users = make, 0
        self._undo: Callable[[], object] | None = None

    def count(self, change: int) -> None:
        with _LOCK:
            self._users += change
            if self._users == 1 and self._undo is None:
                self._undo = self._make()
            elif self._users == 0 and self._undo is not None:
                undo, self._undo = self._undo, None
                undo()


class Wish:
    """One thread's wish for a setting; what is wished twice, or given up twice, counts once."""

    def __init__(self, setting: _Setting) -> None:
        """Wish for nothing yet."""
        self._setting, self._on = setting, False

    def set(self, on: bool) -> None:
        """Wish for the setting, or give it up."""
        if on != self._on:
            self._on = on
            self._setting.count(1 if on else -1)

    @contextlib.contextmanager
    def __call__(self, on: bool) -> Iterator[None]:
        """Wish for the setting, or do without it, for a while."""
        before = self._on
        try:
            self.set(on)
            yield
        finally:
            self.set(before)


def _full_precision() -> Callable[[], object]:
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        return lambda: None
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _eager() -> Callable[[], object]:
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        return lambda: None
    stance = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return lambda: stance.__exit__(None, None, None)


FULL_PRECISION = _Setting(_full_precision)
"""Products of float32 without TF32 or bfloat16, which would leave a part in the row space."""

EAGER = _Setting(_eager)
"""Compiled modules run eagerly, so that they can be watched."""
