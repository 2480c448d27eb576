"""Tasks for tests: skipped with the message that says what is missing."""

from __future__ import annotations

from functools import lru_cache

import pytest

from nullport.lab.compare import MissingData, Task, load_task


@lru_cache
def _load(name: str) -> Task:
    return load_task(name)


def load(name: str) -> Task:
    """Load a task, or skip the test with the message that says what is missing."""
    if name == "digits":
        pytest.importorskip("sklearn")
    try:
        return _load(name)
    except MissingData as error:
        pytest.skip(str(error))
