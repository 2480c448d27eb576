"""Checks that hold for the trainer of every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def check_weights_can_be_put_back(trainer: Any, batch: Callable[[int], Any]) -> None:
    """``weights`` and ``load``: bit for bit, and no gradient of other weights is used after.

    The trainer teleports every 2 steps; ``batch(i)`` is the i-th batch.
    """
    kept, before = trainer.weights(), trainer.evaluate(*batch(0))
    due = []
    for i in range(3):
        due.append(trainer.due)
        trainer.teleport(batch(i), batch(3), batch(4))
        trainer.step(batch(i))
    assert due == [False, False, True]
    assert trainer.evaluate(*batch(0)) != before
    trainer.teleport(batch(0), batch(3), batch(4), now=True)
    trainer.load(kept)
    assert trainer.evaluate(*batch(0)) == before
    assert trainer.step(batch(0))[1] == 1.0  # not the gradient of other weights
    assert trainer.evaluate(*batch(0)) != before
    trainer.load(kept)  # the step has not written into what was put back
    assert trainer.evaluate(*batch(0)) == before
    with pytest.raises(ValueError, match="zip"):
        trainer.load(kept[1:])
    assert trainer.evaluate(*batch(0)) == before
