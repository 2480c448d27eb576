"""The row space of a layer's inputs, in orthonormal coordinates.

For ``X`` (..., n, d) with fewer samples than inputs, QR of ``X^T`` (..., d, n) gives an orthonormal
basis of the row space: no rank decision, no squared condition number, exact to rounding even when
``X`` is rank deficient (surplus directions only cost freedom). With more samples the Gram matrix
``X^T X`` (..., d, d) is accumulated in a stream in float64 and diagonalised. Either way

    X^T X = U diag(energies) U^T,        U (..., d, k) with orthonormal columns.

Forming the Gram matrix squares the condition number, hence float64: singular values are then
resolved down to 1.5e-8 of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from array_api_compat import is_lazy_array

from nullport._arrays import Array, double, namespace, widen, with_column

ROWS = 1024
"""Rows that are converted to float64 at a time."""


@dataclass(frozen=True)
class RowSpace:
    """Orthonormal coordinates for the inputs of a layer.

    Attributes:
        basis: ``U``, shape (..., d, k), orthonormal columns that span the row space.
        energies: Eigenvalues of ``X^T X`` along the columns, ascending, shape (..., k); None if
            they were not asked for.
        complete: Whether ``U`` is square, so that it spans all inputs and not only the rows.
        samples: Number of rows of ``X``.
        rows: Number of rows it was computed from.
    """

    basis: Array
    energies: Array | None
    complete: bool
    samples: int
    rows: int = 0

    @property
    def features(self) -> int:
        """Number of inputs ``d``, the constant input of a bias included."""
        return int(self.basis.shape[-2])


def row_space(
    chunks: Iterable[Array],
    samples: int,
    *,
    bias: bool = False,
    spectrum: bool = False,
    only_null: bool = False,
    every: int = 1,
) -> RowSpace:
    """Return orthonormal coordinates for the rows of ``X``, given in chunks.

    Args:
        chunks: Pieces of ``X``, each (..., n_i, d), of any floating dtype.
        samples: Total number of rows ``n``.
        bias: Append the constant input of a bias to every row.
        spectrum: Also compute the energies where the basis alone does not need them.
        only_null: Only the exact null space is asked for: a few rows that already span all inputs
            then stand for all rows, since more rows cannot bring a null direction back.
        every: The chunks hold about one row in so many, which stand for all ``n``.

    Returns:
        The row space; by QR when there are no more rows than inputs, else by Gram matrix and
        eigendecomposition.

    Raises:
        ValueError: If there are no rows.
    """
    if samples < 1:
        msg = f"the null space needs at least 1 sample, got {samples}"
        raise ValueError(msg)
    stream: Iterator[Array] = (
        with_column(chunk, 1.0) if bias else chunk for chunk in map(widen, chunks)
    )
    first = next(stream)
    if samples // every <= first.shape[-1]:
        xp = namespace(first)
        rows = [first, *stream]
        x = xp.concat(rows, axis=-2) if len(rows) > 1 else first
        if x.shape[-2] <= x.shape[-1]:
            return _by_qr(x, samples, spectrum=spectrum)
        first, stream = x, iter(())
    if only_null and not is_lazy_array(first):
        few = _few_rows(first, samples)
        if few is not None:
            return few
    return _by_gram(first, stream, samples)


def _few_rows(first: Array, samples: int) -> RowSpace | None:
    """Return the row space of about ``2 d`` rows if they span all inputs beyond doubt."""
    features = first.shape[-1]
    spacing = first.shape[-2] // (2 * features)
    if spacing < 2:
        return None
    few = first[..., ::spacing, :]
    xp, rows = namespace(first), few.shape[-2]
    found = _by_gram(few, [], rows)
    energies: Array = found.energies
    total = xp.sum(energies, axis=-1)
    # All rows together have a larger total, against which their smallest energy is judged.
    doubt = 2 * features * float(xp.finfo(total.dtype).eps) * total * (samples / rows)
    sure = bool(xp.all(energies[..., 0] > doubt))
    return replace(found, samples=samples) if sure else None


def _by_qr(x: Array, samples: int, *, spectrum: bool) -> RowSpace:
    """Row space of ``x`` (..., n, d), ``n <= d``, which stands for ``samples`` rows."""
    xp = namespace(x)
    rows, features = x.shape[-2:]
    basis, r = xp.linalg.qr(xp.matrix_transpose(x), mode="reduced")
    energies = None
    if spectrum:
        # X^T X = Q (R R^T) Q^T: the small matrix carries the whole spectrum.
        small = xp.linalg.eigh(r @ xp.matrix_transpose(r))
        basis, energies = basis @ small.eigenvectors, small.eigenvalues * (samples / rows)
    return RowSpace(basis, energies, rows == features, samples, rows)


def _by_gram(first: Array, rest: Iterable[Array], samples: int) -> RowSpace:
    """Row space from the streamed Gram matrix; the rows stand for ``samples`` rows."""
    gram, rows = gram_matrix(first), first.shape[-2]
    for chunk in rest:
        gram, rows = gram + gram_matrix(chunk), rows + chunk.shape[-2]
    xp = namespace(gram)
    eigen = xp.linalg.eigh(gram)
    # The energies need float64; the basis is applied in the dtype of the weights.
    basis = xp.astype(eigen.eigenvectors, first.dtype, copy=False)
    energies = eigen.eigenvalues * (samples / rows)
    return RowSpace(basis, energies, complete=True, samples=samples, rows=rows)


def gram_matrix(x: Array) -> Array:
    """Return ``x^T x`` in float64 where there is one, shape (..., d, d), for ``x`` (..., n, d).

    Rows are converted ``ROWS`` at a time: a float64 copy of all inputs would be the largest thing
    a teleport holds.
    """
    xp = namespace(x)
    gram: Array = 0.0
    rows = x.shape[-2]
    for start in range(0, rows, ROWS):
        part = double(x[..., start : min(start + ROWS, rows), :])
        gram = gram + xp.matrix_transpose(part) @ part
    return gram
