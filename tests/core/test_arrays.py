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


RNG = np.random.default_rng(3)
HUGE = {"float32": (1e25, 1e-30), "float64": (1e200, 1e-200)}


@pytest.mark.parametrize("dtype", HUGE)
def test_norms_where_squares_over_or_underflow(xp: Any, dtype: str) -> None:
    x = RNG.standard_normal((3, 4)).astype(dtype)
    for scale in HUGE[dtype]:
        given = xp.asarray(x * x.dtype.type(scale))
        with np.errstate(over="ignore", under="ignore"):  # as in the context the core runs in
            ends = arrays.norm(given), arrays.joint_norm([given]), arrays.joint_norm([given] * 2)
        for found in ends[:2]:
            assert found.dtype == getattr(xp, dtype)
            assert found.shape == ()
            expected = np.linalg.norm(x.astype(float)) * scale
            assert float(found) == pytest.approx(expected, rel=1e-6)
        assert float(ends[2]) == pytest.approx(np.sqrt(2) * expected, rel=1e-6)


def test_norms_of_nothing_zero_and_no_number(xp: Any) -> None:
    assert float(arrays.norm(xp.zeros((0, 3)))) == 0.0
    assert float(arrays.norm(xp.zeros((2, 3)))) == 0.0
    with np.errstate(invalid="ignore"):
        assert np.isnan(float(arrays.norm(xp.asarray([1.0, np.nan]))))
        assert np.isinf(float(arrays.norm(xp.asarray([1.0, np.inf]))))
    assert float(arrays.joined([xp.asarray(3.0), xp.asarray(4.0)])) == 5.0
    three = xp.asarray(3.0)
    assert arrays.joined([three]) is three


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_the_largest_magnitude_is_a_divisor(xp: Any, value: float) -> None:
    assert float(arrays.largest(xp.asarray([value]))) == 1.0
    assert float(arrays.largest(xp.asarray([0.0, -3.0]))) == 3.0
    assert float(arrays.largest(xp.zeros((0,)))) == 1.0
    assert float(arrays.positive(xp.asarray(-2.0))) == float(arrays.positive(xp.asarray(0.0))) == 1


@pytest.mark.parametrize("stack", [(), (3,)])
def test_a_matrix_in_factors(xp: Any, stack: tuple[int, ...]) -> None:
    left, right = RNG.standard_normal((*stack, 2, 5)), RNG.standard_normal((*stack, 2, 7))
    low = arrays.LowRank(xp.asarray(left), xp.asarray(right))
    formed = np.swapaxes(left, -1, -2) @ right
    rows = RNG.standard_normal((*stack, 4, 7))

    def close(a: Any, b: Any) -> None:
        assert a.dtype == xp.float64
        assert type(a) is type(low.left)
        assert to_numpy(a) == pytest.approx(b, rel=1e-12, abs=1e-12)

    close(low.dense(), formed)
    close(arrays.dense(low), formed)
    close(low.mT.dense(), np.swapaxes(formed, -1, -2))
    along = rows @ np.swapaxes(formed, -1, -2)
    close(low.outputs(xp.asarray(rows)), along)
    for x in (low, xp.asarray(formed)):
        close(arrays.outputs(x, xp.asarray(rows)), along)
        assert float(arrays.norm(x)) == pytest.approx(np.linalg.norm(formed), rel=1e-12)
    size, spread = low.norms()
    assert float(size) == pytest.approx(np.linalg.norm(formed), rel=1e-12)
    assert float(spread) == pytest.approx(np.linalg.norm(left) * np.linalg.norm(right), rel=1e-12)
    halved = arrays.scaled(0.5, low)
    assert isinstance(halved, arrays.LowRank)
    close(halved.dense(), 0.5 * formed)


@pytest.mark.parametrize("scale", [1e25, 1e-30])
def test_outputs_in_the_units_of_the_rows(xp: Any, scale: float) -> None:
    """Gradients are cotangents, in inverse units, times inputs, in units."""
    left, right, rows = (
        RNG.standard_normal(s).astype(np.float32) for s in ((2, 5), (2, 7), (4, 7))
    )
    given = np.float32(scale)
    low = arrays.LowRank(xp.asarray(left / given), xp.asarray(right * given))
    found = arrays.outputs(low, xp.asarray(rows * given))
    assert found.dtype == xp.float32
    expected = rows.astype(float) @ (left.T.astype(float) @ right).T
    assert to_numpy(found) / given == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_norm_of_factors_is_no_less_than_their_rounding() -> None:
    """Two rows that cancel: what is left is not known to be 0."""
    left, right = RNG.standard_normal((1, 5)), RNG.standard_normal((1, 7))
    low = arrays.LowRank(np.concatenate([left, left]), np.concatenate([right, -right]))
    spread = float(low.norms()[1])
    assert 1e-9 * spread < float(low.norm()) < 1e-7 * spread
    scaled = arrays.LowRank(1e200 * low.left, 1e-150 * low.right)
    assert float(scaled.norm()) == pytest.approx(1e50 * float(low.norm()), rel=0.5)


def test_vectors_with_gaps(xp: Any) -> None:
    a, b = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
    low = arrays.LowRank(xp.asarray(RNG.standard_normal((2, 4))), xp.asarray(np.eye(2)))
    formed = to_numpy(low.dense())
    c = RNG.standard_normal((4, 2))
    one, two = [xp.asarray(a), None, low], [xp.asarray(b), xp.asarray(b), xp.asarray(c)]
    assert float(arrays.inner(one, two)) == pytest.approx(np.sum(a * b) + np.sum(formed * c))
    assert float(arrays.inner(two, one)) == pytest.approx(float(arrays.inner(one, two)))
    length = np.sqrt(np.sum(a**2) + np.sum(formed**2))
    assert float(arrays.joint_norm(one)) == pytest.approx(length)
    for factor in (-2.0, xp.asarray(-2.0)):
        found = arrays.combine(one, factor, two)
        assert found[1] is None
        assert to_numpy(found[0]) == pytest.approx(a - 2 * b)
        assert to_numpy(found[2]) == pytest.approx(formed - 2 * c)
    assert arrays.combine(two, 1.0, one)[1] is two[1]


def test_a_factor_takes_the_dtype_of_what_it_multiplies(xp: Any) -> None:
    x = xp.asarray([1.0, 2.0], dtype=xp.float32)
    for factor in (2, 2.0, xp.asarray(2.0, dtype=xp.float64)):
        found = arrays.scaled(factor, x)
        assert found.dtype == xp.float32
        assert to_numpy(found).tolist() == [2.0, 4.0]


def test_numbers_are_plain_in_a_report(xp: Any) -> None:
    for x, kind in (
        (xp.asarray(2.5), float),
        (xp.asarray(2.5, dtype=xp.float32), float),
        (xp.asarray(3), int),
        (2.5, float),
        (np.float64(2.5), float),
    ):
        assert type(arrays.plain(x)) is kind
    assert arrays.known(xp.asarray(True))
    assert not arrays.known(xp.asarray(False))
    assert not arrays.traced(xp.asarray(1.0))


def test_double_is_the_widest_there_is(xp: Any) -> None:
    x = xp.asarray([1.5], dtype=xp.float32)
    assert arrays.double(x).dtype == xp.float64
    wide = xp.asarray([1.5], dtype=xp.float64)
    assert arrays.double(wide) is wide
    assert arrays.eps(x) == np.finfo(np.float32).eps
