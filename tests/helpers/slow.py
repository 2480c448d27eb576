"""Tests that take minutes, which ``make test-slow`` runs."""

from __future__ import annotations

import os

import pytest


def slow(condition: bool, reason: str) -> None:
    """Skip a test where that is so, unless slow ones were asked for."""
    if condition and "NULLPORT_SLOW" not in os.environ:
        pytest.skip(f"{reason}: make test-slow")
