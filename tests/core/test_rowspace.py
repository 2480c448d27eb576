"""Orthonormal coordinates of layer inputs, by both routes, against dense NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, to_numpy, with_ones
from hypothesis import given
from hypothesis import strategies as st

from nullport._rowspace import gram_matrix, row_space

EXACT = {"float32": 1e-5, "float64": 1e-13}


def _inputs(n: int, d: int, rank: int, *, stack: tuple[int, ...] = (), seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((*stack, n, rank))
    return left @ generator.standard_normal((*stack, rank, d))


def _check(space: Any, x: Any, tolerance: float) -> None:
    """Orthonormal columns that span the rows, and energies that are those of the Gram matrix."""
    basis = to_numpy(space.basis).astype(np.float64)
    k = basis.shape[-1]
    gram = np.swapaxes(basis, -1, -2) @ basis
    assert np.abs(gram - np.eye(k)).max() <= tolerance
    left = x - (x @ basis) @ np.swapaxes(basis, -1, -2)
    assert np.linalg.norm(left) <= tolerance * np.linalg.norm(x)
    assert space.features == x.shape[-1]
    assert space.complete == (k == x.shape[-1])
    if space.energies is not None:
        energies = to_numpy(space.energies).astype(np.float64)
        assert (np.diff(energies, axis=-1) >= -tolerance * energies.max()).all()
        inside = np.swapaxes(basis, -1, -2) @ np.swapaxes(x, -1, -2) @ x @ basis
        diagonal = np.zeros_like(inside)
        diagonal[..., np.arange(k), np.arange(k)] = energies
        assert np.abs(inside - diagonal).max() <= tolerance * energies.max()


CASES = [
    ("QR", 5, 9, 5),
    ("QR rank deficient", 6, 9, 2),
    ("QR square", 9, 9, 9),
    ("Gram", 30, 9, 9),
    ("Gram rank deficient", 30, 9, 4),
    ("Gram one input", 4, 1, 1),
    ("one row", 1, 6, 1),
]


@pytest.mark.parametrize("spectrum", [False, True])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(("n", "d", "rank"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_row_space(xp: Any, n: int, d: int, rank: int, dtype: str, spectrum: bool) -> None:
    x = _inputs(n, d, rank).astype(dtype)
    space = row_space([xp.asarray(x)], n, spectrum=spectrum)
    _check(space, x.astype(np.float64), EXACT[dtype])
    assert space.samples == n
    assert (space.energies is not None) == (spectrum or n > d)
    assert space.basis.shape[-1] == min(n, d)


@pytest.mark.parametrize(("n", "d", "rank"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_stacks_and_bias(xp: Any, n: int, d: int, rank: int) -> None:
    x = _inputs(n, d, rank, stack=(2, 3))
    space = row_space([xp.asarray(x)], n, bias=True, spectrum=True)
    _check(space, with_ones(x), 1e-12)
    assert space.basis.shape == (2, 3, d + 1, min(n, d + 1))


@pytest.mark.parametrize("n", [6, 40])
def test_chunks_are_the_same_as_one_piece(xp: Any, n: int) -> None:
    x = _inputs(n, 9, 9)
    pieces = [xp.asarray(piece) for piece in np.array_split(x, 4)]
    whole = row_space([xp.asarray(x)], n, bias=True, spectrum=True)
    parts = row_space(iter(pieces), n, bias=True, spectrum=True)
    _check(parts, with_ones(x), 1e-12)
    assert to_numpy(parts.energies) == pytest.approx(to_numpy(whole.energies))


def test_gram_of_float32_is_float64(xp: Any) -> None:
    x = xp.asarray(_inputs(30, 4, 4).astype(np.float32))
    gram = gram_matrix(x)
    assert gram.dtype == xp.float64
    exact = to_numpy(x).astype(np.float64)
    assert np.abs(to_numpy(gram) - exact.T @ exact).max() <= 1e-12


def test_half_precision_is_widened(xp: Any) -> None:
    if not hasattr(xp, "float16"):
        pytest.skip("no float16")
    x = _inputs(4, 9, 4)
    half = xp.astype(xp.asarray(x), xp.float16)
    space = row_space([half], 4)
    assert space.basis.dtype == xp.float32
    _check(space, to_numpy(half).astype(np.float64), 1e-5)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_rows_is_an_error(xp: Any, samples: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 sample, got {samples}"):
        row_space([xp.ones((0, 3))], samples)


@given(
    n=st.integers(1, 12),
    d=st.integers(1, 8),
    rank=st.integers(1, 8),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e6]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_complement_is_the_null_space(
    n: int, d: int, rank: int, scale: float, bias: bool, seed: int
) -> None:
    """Whatever the shape: what the basis leaves is null, and with full rank all that is null."""
    x = scale * _inputs(n, d, min(rank, n, d), seed=seed)
    space = row_space([np.asarray(x)], n, bias=bias)
    full = with_ones(x) if bias else x
    basis = space.basis
    if space.complete and space.energies is not None:
        basis = basis[:, space.energies > 1e-12 * space.energies.max()]
    outside = np.eye(full.shape[1]) - basis @ basis.T
    assert np.linalg.norm(full @ outside) <= 1e-5 * np.linalg.norm(full)
    if np.linalg.matrix_rank(full) == n:
        assert np.abs(outside - null_projector(full)).max() <= 1e-6
