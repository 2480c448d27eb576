"""Parameters read and changed as matrices, against NumPy's own reshaping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nullport.network import Change, LowRank
from nullport_arrays import _elements

W = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
CASES: dict[str, tuple[str, int, Any]] = {
    "in_out": ("in_out", 0, W.reshape(24, 5).T),
    "out_in": ("out_in", 0, W.reshape(2, 60)),
    "last_in": ("last_in", 0, W.reshape(24, 5)),
    "in_out stack": ("in_out", 1, W.reshape(2, 12, 5).transpose(0, 2, 1)),
    "out_in stack": ("out_in", 2, W),
}
every_case = pytest.mark.parametrize(("orientation", "stack", "seen"), CASES.values(), ids=CASES)


@every_case
def test_read_and_stored(xp: Any, orientation: str, stack: int, seen: Any) -> None:
    layout = _elements.layout_of(W.shape, orientation, stack=stack)
    found = layout.read(xp.asarray(W))
    assert np.array_equal(np.asarray(found), seen)
    assert np.array_equal(np.asarray(layout.written(found, xp.asarray(W))), W)


@every_case
@pytest.mark.parametrize("factors", [False, True])
def test_moved(xp: Any, orientation: str, stack: int, seen: Any, factors: bool) -> None:
    layout = _elements.layout_of(W.shape, orientation, stack=stack)
    rng = np.random.default_rng(1)
    left = rng.standard_normal((*seen.shape[:-2], 2, seen.shape[-2]))
    right = rng.standard_normal((*seen.shape[:-2], 2, seen.shape[-1]))
    change = left.swapaxes(-1, -2) @ right
    move = (
        Change(0, layout, LowRank(xp.asarray(left), xp.asarray(right)))
        if factors
        else Change(0, layout, xp.asarray(change))
    )
    found = layout.read(move.added_to(xp.asarray(W)))
    assert np.allclose(np.asarray(found), seen + change, rtol=1e-14, atol=1e-14)


def test_the_dtype_of_the_parameter_stays() -> None:
    layout = _elements.bias_layout((4,))
    w = np.ones(4, np.float32)
    found = Change(0, layout, np.full(4, 1e-3)).added_to(w)
    assert found.dtype == np.float32
    assert np.array_equal(w, np.ones(4))


def test_what_is_given_stays_as_it_is() -> None:
    rng = np.random.default_rng(2)
    w, left, right = (rng.standard_normal(shape) for shape in ((4, 3), (2, 4), (2, 3)))
    copies = [a.copy() for a in (w, left, right, w)]
    layout = _elements.layout_of(w.shape, "out_in")
    change = np.ones((4, 3))
    for move in (Change(0, layout, LowRank(left, right)), Change(0, layout, change)):
        assert not np.array_equal(move.added_to(w), w)
    assert all(map(np.array_equal, (w, left, right, w), copies))
    assert np.array_equal(change, np.ones((4, 3)))
