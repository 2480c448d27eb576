"""Spectral filters against dense projectors, and the bound on the output change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, threshold_rank, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from nullport._direction import Direction
from nullport._projection import threshold_filter
from nullport._rowspace import row_space

ROUTES = pytest.mark.parametrize(("n", "rank"), [(5, 5), (40, 6)], ids=["QR", "Gram"])
D, OUT = 12, 7


def _rows(n: int, d: int, rank: int, seed: int = 0, stack: tuple[int, ...] = ()) -> Any:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((*stack, n, rank)) @ generator.standard_normal(
        (*stack, rank, d)
    )


def _spread(n: int, d: int, decay: float, seed: int = 0) -> Any:
    """Rows whose singular values fall by ``decay`` from one to the next."""
    generator = np.random.default_rng(seed)
    k = min(n, d)
    u, _ = np.linalg.qr(generator.standard_normal((n, k)))
    v, _ = np.linalg.qr(generator.standard_normal((d, k)))
    return u * decay ** np.arange(k) @ v.T


def _direction(value: Any, xp: Any) -> Direction:
    return Direction(None, value, xp.asarray(1.0))


@ROUTES
def test_exact_filter_is_the_dense_projector(xp: Any, n: int, rank: int) -> None:
    x = _rows(n, D, rank)
    d = np.random.default_rng(1).standard_normal((OUT, D))
    kept = threshold_filter(row_space([xp.asarray(x)], n), 0.0)
    got = to_numpy(kept.apply(xp.asarray(d)))
    assert np.abs(got - d @ null_projector(x)).max() <= 1e-12
    assert np.linalg.norm(got @ x.T) <= 1e-13 * np.linalg.norm(d) * np.linalg.norm(x)
    assert int(kept.free) == D - rank
    assert not bool(kept.empty)


@ROUTES
def test_exact_filter_of_a_stack(xp: Any, n: int, rank: int) -> None:
    x = _rows(n, D, rank, stack=(2, 3))
    d = np.random.default_rng(1).standard_normal((2, 3, OUT, D))
    kept = threshold_filter(row_space([xp.asarray(x)], n), 0.0)
    got = to_numpy(kept.apply(xp.asarray(d)))
    assert np.abs(got - d @ null_projector(x)).max() <= 1e-12
    assert int(kept.free) == 6 * (D - rank)


@pytest.mark.parametrize("n", [D, D + 1, 100])
def test_exact_filter_of_full_rank_frees_nothing(xp: Any, n: int) -> None:
    x, d = _rows(n, D, D), np.ones((OUT, D))
    kept = threshold_filter(row_space([xp.asarray(x)], n), 0.0)
    assert np.abs(to_numpy(kept.apply(xp.asarray(d)))).max() <= 1e-13
    assert int(kept.free) == 0
    assert bool(kept.empty)


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("tau", [1e-6, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_threshold_frees_as_much_as_it_may(xp: Any, n: int, tau: float) -> None:
    x = _spread(n, D, 0.6)
    kept = threshold_filter(row_space([xp.asarray(x)], n, spectrum=True), tau)
    rank = threshold_rank(x, tau)
    assert int(kept.free) == D - rank
    value = kept.apply(xp.asarray(np.eye(D)))
    projector = to_numpy(value)
    assert np.abs(projector @ projector - projector).max() <= 1e-12
    assert np.trace(projector) == pytest.approx(D - rank)
    assert np.linalg.norm(projector @ x.T) ** 2 <= tau * np.linalg.norm(x) ** 2 * (1 + 1e-12)


@given(
    n=st.integers(1, 14),
    d=st.integers(1, 10),
    decay=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    stack=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_threshold_one_frees_everything(
    n: int, d: int, decay: float, stack: int, seed: int
) -> None:
    x = np.stack([_spread(n, d, decay, seed + i) for i in range(stack)])
    kept = threshold_filter(row_space([x], n, spectrum=True), 1.0)
    assert int(kept.free) == stack * d
    eye = np.broadcast_to(np.eye(d), (stack, d, d)).copy()
    assert np.abs(kept.apply(eye) - eye).max() <= 1e-12


@given(
    n=st.integers(1, 14),
    d=st.integers(1, 10),
    decay=st.sampled_from([0.05, 0.3, 0.8]),
    tau=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_given_up_energy_is_below_the_threshold_and_maximal(
    n: int, d: int, decay: float, tau: float, seed: int
) -> None:
    x = _spread(n, d, decay, seed)
    kept = threshold_filter(row_space([x], n, spectrum=True), tau)
    projector = kept.apply(np.eye(d))
    total = np.linalg.norm(x) ** 2
    assert np.linalg.norm(projector @ x.T) ** 2 <= (tau + 1e-12) * total
    energies = np.sort(np.linalg.svd(x, compute_uv=False) ** 2) / total
    freed = int(kept.free) - (d - len(energies))  # of those inside the row space
    if 0 <= freed < len(energies):
        assert energies[: freed + 1].sum() > tau - 1e-12


def test_threshold_needs_the_spectrum(xp: Any) -> None:
    space = row_space([xp.asarray(_rows(3, D, 3))], 3)
    with pytest.raises(ValueError, match=r"threshold 0\.1 needs the spectrum"):
        threshold_filter(space, 0.1)


def _bound(kept: Any, step: Direction, x: Any) -> float:
    """The bound as it is reported: what the spectrum says, and rounding."""
    given_up = 0.0 if kept.space.energies is None else float(kept.given_up(step))
    input_norm = np.asarray(np.linalg.norm(x), dtype=x.dtype)
    return given_up + float(step.size) * float(kept.rounding(input_norm))


@settings(max_examples=300)
@given(
    n=st.integers(1, 40),
    d=st.integers(2, 12),
    decay=st.sampled_from([1e-3, 0.1, 0.7, 1.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    tau=st.sampled_from([0.0, 0.0, 1e-6, 0.05, 0.5]),
    out=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 10_000),
)
def test_the_bound_on_the_output_change_holds(
    n: int, d: int, decay: float, scale: float, tau: float, out: int, dtype: str, seed: int
) -> None:
    """Never violated, whatever the spectrum; exact up to rounding where something is given up."""
    x = (scale * _spread(n, d, decay, seed)).astype(dtype)
    kept = threshold_filter(row_space([x], n, spectrum=tau > 0), tau)
    raw = np.random.default_rng(seed).standard_normal((out, d)).astype(dtype)
    value = kept.apply(raw)
    change = float(np.linalg.norm(value.astype(np.float64) @ x.T.astype(np.float64)))
    step = _direction(value, np)
    bound = _bound(kept, step, x)
    assert change <= bound
    noise = 50 * np.finfo(dtype).eps * d * np.linalg.norm(raw) * np.linalg.norm(x)
    if tau > 1e-3:
        slack = np.finfo(dtype).eps ** 0.5 * np.linalg.norm(value) * np.linalg.norm(x)
        assert bound <= change + noise + slack + step.size * kept.rounding(
            np.asarray(np.linalg.norm(x), dtype=dtype)
        )


@pytest.mark.parametrize("n", [5, 40], ids=["QR", "Gram"])
@pytest.mark.parametrize("share", [1e-1, 1e-2, 2e-3])
def test_a_direction_mostly_in_the_row_space_stays_null(n: int, share: float) -> None:
    """The move is scaled up to the radius: what rounding left in the row space is scaled too."""
    generator = np.random.default_rng(0)
    exact = _rows(n, 40, 5)
    x = exact.astype(np.float32)
    raw = generator.standard_normal((OUT, n)) @ exact
    raw /= np.linalg.norm(raw)
    free = generator.standard_normal((OUT, 40)) @ null_projector(exact)
    raw = (raw + share * free / np.linalg.norm(free)).astype(np.float32)
    kept = threshold_filter(row_space([x], n), 0.0)
    value = kept.apply(raw)
    step = _direction(value, np)
    change = float(np.linalg.norm(value.astype(np.float64) @ x.T.astype(np.float64)))
    assert change <= _bound(kept, step, x)
    assert change <= 1e-5 * float(np.linalg.norm(value)) * float(np.linalg.norm(x))


def test_nearly_dependent_inputs_are_covered_by_the_bound() -> None:
    """Singular values below what a Gram matrix resolves: freed, and still within the bound."""
    for seed in range(40):
        x = _spread(20, 4, 1e-3, seed)
        kept = threshold_filter(row_space([x], 20), 0.0)
        value = kept.apply(np.random.default_rng(seed).standard_normal((3, 4)))
        change = float(np.linalg.norm(value @ x.T))
        assert change <= _bound(kept, _direction(value, np), x)
