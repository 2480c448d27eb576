"""Dense NumPy oracles of the linear algebra: everything by SVD, nothing clever."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]


def to_numpy(x: Any) -> Matrix:
    """Return any CPU array as a NumPy one."""
    if hasattr(x, "_array"):  # array-api-strict
        return np.asarray(x._array)
    if hasattr(x, "detach"):
        x = x.detach()
        return (x.float() if "bfloat16" in str(x.dtype) else x).numpy()
    return np.asarray(x)


def with_ones(x: Matrix) -> Matrix:
    """Append the constant input of a bias."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1), dtype=x.dtype)], axis=-1)


def numerical_rank(x: Matrix) -> int:
    """Return the rank of a single matrix, at the usual cut-off."""
    return int(np.linalg.matrix_rank(x.astype(np.float64)))


def null_projector(x: Matrix) -> Matrix:
    """Return the projectors onto the null spaces of a stack of matrices (..., n, d)."""
    x = x.astype(np.float64)
    stack, (n, d) = x.shape[:-2], x.shape[-2:]
    projectors = []
    for matrix in x.reshape(-1, n, d):
        _, sigma, vt = np.linalg.svd(matrix, full_matrices=n < d)
        rank = int((sigma > max(n, d) * np.finfo(np.float64).eps * sigma[:1].sum()).sum())
        projectors.append(vt[rank:].T @ vt[rank:])
    return np.stack(projectors).reshape(*stack, d, d)


def threshold_rank(x: Matrix, tau: float) -> int:
    """Return how many directions must stay constrained so that at most ``tau`` energy is freed."""
    energies = np.sort(np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2)
    given_up = np.cumsum(energies) / energies.sum()
    return int((given_up > tau).sum())


def relative(a: Matrix, b: Matrix) -> float:
    """Return ``||a - b|| / ||b||``."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a: Matrix, b: Matrix) -> float:
    """Return the cosine of the angle between two arrays taken as vectors."""
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))
