"""Array helpers that the standard lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy

from nullport import _arrays as arrays


def test_widen_keeps_float32_and_float64(xp: Any) -> None:
    for dtype in (xp.float32, xp.float64):
        x = xp.ones((2, 3), dtype=dtype)
        assert arrays.widen(x) is x


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_widen_makes_float32_of_half_precision(xp: Any, name: str) -> None:
    if not hasattr(xp, name):
        pytest.skip(f"no {name}")
    half = xp.astype(xp.asarray([[1.5, -2.0]], dtype=xp.float32), getattr(xp, name))
    wide = arrays.widen(half)
    assert wide.dtype == xp.float32
    assert to_numpy(wide).tolist() == [[1.5, -2.0]]


def test_norms(xp: Any) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 3, 4)), generator.standard_normal(5)
    x, y = xp.asarray(a), xp.asarray(b)
    assert arrays.norm(x).shape == ()
    assert float(arrays.norm(x)) == pytest.approx(np.linalg.norm(a.reshape(-1)))
    both = np.linalg.norm(np.concatenate([a.reshape(-1), b]))
    assert float(arrays.joint_norm([x, y])) == pytest.approx(both)
    with pytest.raises(ValueError, match="at least one"):
        arrays.joint_norm([])


def test_with_column(xp: Any) -> None:
    x = xp.zeros((2, 3, 4), dtype=xp.float32)
    wide = arrays.with_column(x, 2.5)
    assert wide.shape == (2, 3, 5)
    assert wide.dtype == xp.float32
    assert to_numpy(wide)[..., -1].tolist() == [[2.5] * 3] * 2
    assert not to_numpy(wide)[..., :-1].any()


def test_probe_vector_is_fixed_and_has_no_structure(xp: Any) -> None:
    like = xp.ones((1,), dtype=xp.float64)
    probe = to_numpy(arrays.probe_vector(like, 64))
    assert probe.shape == (64,)
    assert (probe == to_numpy(arrays.probe_vector(like, 64))).all()
    assert abs(probe).min() > 1e-4  # sees every output
    assert np.linalg.matrix_rank(probe.reshape(8, 8)) >= 3
