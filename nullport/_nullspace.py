"""The null space of a layer's inputs: row space, spectrum, gains and what they let through.

A direction ``D`` (..., out, d) is written in orthonormal coordinates of the inputs ``X``
(..., n, d), a bias being the weight of a constant input, and every coordinate is multiplied by a
gain in [0, 1]:

    X^T X = U diag(energies) U^T,    N = D (g0 I - U diag(g0 - gain) U^T),    U (..., d, k),

with ``g0`` the gain of energy 0, outside the row space. A projection is its gain function:

- exact: 0 where the energy is not rounding, else 1;
- ``threshold`` (Wu et al., 2025): 1 on the trailing directions that hold at most a share of it;
- ``budget``: ``1 / (1 + s energy)``, which gains most for a given output change ``||N X^T|| <= e``
  and length ``||N|| <= r``; ``s`` is the root of a secular equation (:func:`budget_gain`);
- a function of the relative energies that the user supplies.

No more rows than inputs: QR of ``X^T``, then the singular values of the small factor decide the
rank, so that rows that repeat or depend on each other cost no freedom. More rows: the streamed Gram
matrix in float64, or in the dtype of the rows for a budget, whose effect is measured and not read
from small energies; where the data itself has that precision, streamed QR, for squaring would halve
the digits. The d x d projector is never formed; gains are masks, so all of this runs under jit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import chain
from math import prod
from operator import or_
from typing import Protocol

from nullport import _arrays as ar
from nullport._arrays import Array, Collective
from nullport._config import TeleportConfig
from nullport._sites import Site

SLACK = 1 / 8
"""Share of the inputs that must be left free for the exact null space to be used."""

ROWS_PER_FEATURE, WIDE, ROWS_PER_WIDE_FEATURE = 4, 1024, 0.5
"""Rows per input that the space of a budget is made from, and the same from ``WIDE`` inputs on.

Half as many rows as inputs need a QR instead of an eigendecomposition in float64: a tenth of the
time for 99 % of the gain at a budget of 0.2, two thirds at 0.02 (``asv_bench/routes.py``).
"""

ENOUGH = 0.25
"""Share of a direction that one pass of projection must leave for a second to be skipped."""

CHUNK = 1024
"""Rows that are converted to float64 at a time."""

GRID, ROUNDS = 33, 5
"""Each round narrows the bracket of log s by ``GRID - 1``: to 42 / 32^5 = 1e-6 in all. Its upper
end is taken, and the output change measured: what is left only shortens a step so much."""


def is_tight(features: int, samples: int, config: TeleportConfig) -> bool:
    """Tell whether so few inputs are left free that the layer has to keep to a budget."""
    return config.projection == "budget" and samples > (1 - SLACK) * features


class _Rows(Protocol):
    """What is asked of a site here."""

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield rows in chunks."""


@dataclass(frozen=True)
class NullSpace:
    """Orthonormal coordinates of a layer's inputs, and the gain along each.

    Attributes:
        basis: ``U``, shape (..., d, k); square, or else spanning the rows.
        energies: Those of ``X / scale`` along the columns, ascending, (..., k); None where all
            columns are constrained and no more is known.
        size: ``||X||``, the constant input of a bias included, 0-d.
        resolved: Whether this is the exact null space, with energies that are known to the
            rounding of ``X`` itself, without squaring; gains are then 0 and 1.
        rows: Number of rows that the coordinates were made from.
        scale: 0-d.
        gains: Fixed gains, (..., k); None for 0 everywhere, or with a budget.
        outside: Gain outside the span of ``U``.
        ratio: Of a budget, the output change of ``X / scale`` allowed per unit of length, 0-d.
    """

    basis: Array
    energies: Array | None
    size: Array
    resolved: bool
    rows: int
    scale: Array | float = 1.0
    gains: Array | None = None
    outside: Array | float = 1.0
    ratio: Array | None = None

    @property
    def features(self) -> int:
        """Number of inputs ``d``, the constant input of a bias included."""
        return int(self.basis.shape[-2])

    @property
    def beyond(self) -> int:
        """Number of directions outside the span of ``U``, over the whole stack."""
        *stack, d, k = self.basis.shape
        return prod(map(int, stack)) * int(d - k)

    def project(self, d: Array) -> tuple[Array, Array, Array]:
        """Return ``N`` for ``d`` (..., m, features), ``||N||`` and ``||d||``, the norms 0-d."""
        xp, total = ar.namespace(d), ar.norm(d)
        basis = xp.astype(self.basis, d.dtype, copy=False)
        if self.ratio is None and self.gains is None and not self.beyond:
            return xp.zeros_like(d), xp.zeros_like(total), total
        if self.ratio is None and self.beyond and (self.gains is None or self.resolved):
            if self.gains is not None:
                basis = basis * xp.astype(1 - self.gains, d.dtype, copy=False)[..., None, :]
            return (*_removed(d, basis, total), total)
        coordinates = d @ basis
        gains = self.gains if self.ratio is None else self._budget(coordinates, total)
        gains = xp.astype(gains, d.dtype, copy=False)[..., None, :]
        outside = ar.scaled(self.outside, xp.ones_like(d[..., :1, :1]))
        part = coordinates * (gains if not self.beyond else gains - outside)
        found = part @ xp.matrix_transpose(basis)
        found = found if not self.beyond else found + d * outside
        return found, ar.norm(found), total

    def _budget(self, coordinates: Array, total: Array) -> Array:
        """Return the gains of a budget for a direction with these coordinates, of this norm."""
        xp, shape = ar.namespace(coordinates), self.basis.shape
        squares = xp.sum(ar.double(coordinates / ar.positive(total)) ** 2, axis=-2)
        outside = xp.clip(1 - xp.sum(squares), 0.0) * (1.0 if self.beyond else 0.0)
        energies = ar.double(xp.reshape(self.energies, (-1,)))
        flat = budget_gain(energies, xp.reshape(squares, (-1,)), outside, self.ratio)
        return xp.reshape(flat, (*shape[:-2], shape[-1]))

    @cached_property
    def free(self) -> Array:
        """Number of free directions over the whole stack, 0-d.

        With a budget, those along which a whole step stays within it.
        """
        xp = ar.namespace(self.basis)
        beyond = self.beyond * xp.astype(self.outside + 0 * self.size >= 0.5, xp.int32)
        if self.ratio is not None:
            columns = ar.double(self.energies) <= self.ratio**2
        elif self.gains is not None:
            columns = self.gains >= 0.5
        else:
            return beyond
        return xp.sum(xp.astype(columns, xp.int32)) + beyond

    @property
    def empty(self) -> Array:
        """Whether nothing can move, 0-d bool; never with a budget, which frees all a little."""
        xp, outside = ar.namespace(self.basis), self.outside + 0 * self.size
        shut = (outside <= 0) if self.beyond else (self.size >= 0)
        if self.ratio is not None:
            return self.size < 0
        return shut if self.gains is None else shut & ~xp.any(self.gains > 0)

    @property
    def leak(self) -> Array:
        """Largest ``||X u||`` over free unit vectors ``u`` of the exact null space, 0-d."""
        xp = ar.namespace(self.size)
        if self.energies is None or self.gains is None:
            return xp.zeros_like(self.size)
        let = xp.where(self.gains > 0, self.energies, xp.zeros_like(self.energies))
        return xp.astype(xp.sqrt(xp.max(let)), self.size.dtype) * self.scale

    @property
    def rounding(self) -> Array:
        """What rounding may add to ``||N X^T||`` per unit of ``||N||``, 0-d.

        A single pass of projection may have been scaled up by ``1 / ENOUGH``.
        """
        return 2 / ENOUGH * ar.eps(self.size) * max(self.features, 1) ** 0.5 * self.size

    def work(self, elements: int, samples: int) -> float:
        """Return the floating-point operations of the space, and of one projection.

        QR with an explicit basis: ``4 n^2 d``. Gram matrix and eigendecomposition in float64,
        which counts twice: ``4 n d^2 + 18 d^3``. Projection: ``4 n^2 d`` (rows) or ``4 out d^2``,
        for a weight of so many ``elements``. A budget measures the output change on all samples.
        """
        stack, d = prod(map(int, self.basis.shape[:-2])), self.features
        measured = 2.0 * samples * elements if self.ratio is not None else 0.0
        if self.rows <= d:
            return 8.0 * stack * self.rows**2 * d + measured
        return stack * (4.0 * self.rows * d**2 + 18.0 * d**3) + 4.0 * elements * d + measured


def _removed(d: Array, basis: Array, total: Array) -> tuple[Array, Array]:
    """Remove the span of ``basis`` from ``d`` of norm ``total``; return what is left, and its norm.

    A direction is scaled up to its radius, and with it what rounding left of it in the row space:
    once is enough only where much was left. Under jit nothing can be asked, so twice.
    """
    back = ar.namespace(d).matrix_transpose(basis)

    def left(of: Array) -> Array:
        negative = ar.added((of @ basis) @ back, of, -1.0)
        negative *= -1.0
        return negative

    once = left(d)
    if not ar.traced(d) and float(kept := ar.norm(once)) > ENOUGH * float(total):
        return once, kept
    free = left(once)
    return free, ar.norm(free)


def null_space(
    sites: Sequence[_Rows],
    features: int,
    config: TeleportConfig,
    *,
    bias: bool,
    samples: int,
    output_norm: Array,
    length: Array,
    together: Collective,
) -> NullSpace:
    """Return the null space of a weight from the inputs of all its sites.

    A budget is a share of ``output_norm``, ``||X W^T||``, for steps of norm ``length`` (0-d both).

    Raises:
        ValueError: If there are no rows, or the user's gain is not what is allowed.
    """
    if samples < 1:
        msg = f"the null space needs at least 1 sample, got {samples}"
        raise ValueError(msg)
    tight = is_tight(features, samples, config)
    exact = not (tight or config.threshold > 0 or callable(config.projection))
    share = ROWS_PER_WIDE_FEATURE if features >= WIDE else ROWS_PER_FEATURE
    every = max(1, samples // int(share * features)) if tight else 1
    chunks = map(ar.widen, chain.from_iterable(site.rows(every) for site in sites))
    first = next(chunks)
    xp = ar.namespace(first)
    if config.projection == "none":
        size = together.sum(sum(map(ar.norm, chunks), start=ar.norm(first))) + samples**0.5
        return _without_basis(first, features, size, samples)
    # Squares of scaled rows do not over- or underflow.
    scale = together.sum(ar.largest(first))
    scale = xp.maximum(scale, xp.ones_like(scale)) if bias else scale
    rows = (x / scale for x in chain([first], chunks))
    rows = (ar.with_column(x, 1 / scale) for x in rows) if bias else rows
    space = _coordinates(rows, samples, every, exact, together, narrow=tight)
    space = replace(
        space,
        basis=xp.astype(space.basis, first.dtype, copy=False),
        size=xp.astype(space.size, first.dtype, copy=False) * scale,
        scale=scale,
    )
    if space.energies is None:
        return space
    if tight:
        if every > 1:  # the certificate needs the norm of all rows
            size = together.norm(ar.joint_norm(x for site in sites for x in site.rows()))
            ones = xp.full_like(size, samples**0.5)
            space = replace(space, size=ar.joined([size, ones]) if bias else size)
        change = config.budget * output_norm
        return replace(space, ratio=ar.double(change / ar.positive(length) / scale))
    if callable(config.projection):
        return _chosen(space, config.projection)
    return replace(space, gains=_step(space, config.threshold))


@dataclass(frozen=True)
class Pinned:
    """Outputs of a weight (..., out, in) that have to stay, whatever its inputs are.

    Where its transpose is used too, ``Y' = C W`` with ``C`` (..., n, out), a move ``dW`` has to
    meet ``C dW = 0`` besides ``dW X^T = 0``. With ``g_W = delta^T X + C^T gamma`` and projectors
    ``Q`` and ``P`` on the null spaces of ``C`` and ``X``,

        Q grad_W phi P = Q (delta^T Xdot + Cdot^T gamma) P,

    for the terms with ``C`` or ``X`` itself are removed: still no second derivatives. Rows of a
    table that are looked up are such outputs as well, one unit vector of ``C`` each.

    Attributes:
        space: The null space of ``C``, or None.
        loose: 1 for rows of the weight that are not looked up, else 0, (out, 1); or None.
    """

    space: NullSpace | None
    loose: Array | None

    def project(self, d: Array) -> tuple[Array, Array]:
        """Return ``Q d`` for a direction (..., out, features), and its norm."""
        xp = ar.namespace(d)
        if self.loose is not None:
            d = d * xp.astype(self.loose, d.dtype, copy=False)
        if self.space is None:
            return d, ar.norm(d)
        free, size, _ = self.space.project(xp.matrix_transpose(d))
        return xp.matrix_transpose(free), size

    @property
    def empty(self) -> Array:
        """Whether no output is left, 0-d bool."""
        found = [] if self.space is None else [self.space.empty]
        if self.loose is not None:
            found.append(~ar.namespace(self.loose).any(self.loose > 0))
        return reduce(or_, found)

    @property
    def rounding(self) -> Array | float:
        """What rounding may add to ``||C N||`` per unit of ``||N||``, 0-d."""
        return 0.0 if self.space is None else self.space.rounding


@dataclass(frozen=True)
class _Loose:
    """Rows of a site, 0 in the columns that are held anyway."""

    site: Site
    loose: Array

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield rows in chunks."""
        for chunk in self.site.rows(every):
            yield chunk * ar.namespace(chunk).astype(self.loose, chunk.dtype, copy=False)


def pinned(
    sites: Sequence[Site], held: Array | None, outputs: int, together: Collective, like: Array
) -> Pinned:
    """Return the outputs that have to stay.

    Args:
        sites: Uses of the transposed weight.
        held: Which rows of the weight are looked up, (outputs,) bool, or None.
        outputs: Rows of the weight.
        together: Adds over replicas.
        like: 0-d, in the dtype of what is computed.
    """
    xp, loose = ar.namespace(like), None
    if held is not None:
        taken = together.sum(xp.astype(held, like.dtype)) > 0
        loose = xp.astype(~taken, like.dtype)
    if not sites:
        return Pinned(None, None if loose is None else loose[:, None])
    exact = TeleportConfig(projection="threshold", threshold=0.0)
    space = null_space(
        sites if loose is None else [_Loose(site, loose) for site in sites],
        outputs,
        exact,
        bias=False,
        samples=int(together.sum(sum(site.samples for site in sites))),
        output_norm=like,
        length=like,
        together=together,
    )
    return Pinned(space, None if loose is None else loose[:, None])


def _step(space: NullSpace, tau: float) -> Array:
    """Return gains of 1 on trailing directions with at most a share ``tau`` of the energy.

    ``tau = 0`` is the exact null space: directions whose energy is rounding count as null.
    """
    xp, energies = ar.namespace(space.basis), space.energies
    assert energies is not None
    if tau > 0:
        held = xp.cumulative_sum(energies, axis=-1)
        free = held <= tau * held[..., -1:]
    else:
        rounding = _tolerance(space.basis, space.rows) ** 2
        rounding = rounding if space.resolved else max(rounding, space.features * ar.eps(energies))
        free = energies <= rounding * energies[..., -1:]
    return xp.astype(free, space.basis.dtype)


def _tolerance(like: Array, rows: int) -> float:
    """Return the singular value, relative to the largest, below which a direction is rounding."""
    return 2 * math.sqrt(max(rows, like.shape[-2])) * ar.eps(like)


def _chosen(space: NullSpace, function: Callable[[Array], Array]) -> NullSpace:
    """Return the space with the gains of a user's function."""
    xp, energies = ar.namespace(space.basis), space.energies
    shares = energies / ar.positive(xp.sum(energies, axis=-1, keepdims=True))
    with_zero = xp.concat([xp.zeros_like(shares[..., :1]), shares], axis=-1)
    found = function(with_zero)
    shape, allowed = getattr(found, "shape", None), tuple(with_zero.shape)
    if shape is None or tuple(shape) != allowed:
        what = type(found).__name__ if shape is None else f"shape {tuple(shape)}"
        msg = f"the projection returned {what}; allowed: gains of shape {allowed}"
        raise ValueError(msg)
    if ar.known(~xp.all((found >= 0) & (found <= 1))):
        low, high = float(xp.min(found)), float(xp.max(found))
        msg = f"the projection returned gains from {low:g} to {high:g}; allowed: numbers in [0, 1]"
        raise ValueError(msg)
    gains = xp.astype(found, space.basis.dtype, copy=False)
    return replace(space, gains=gains[..., 1:], outside=xp.max(gains[..., 0]))


def _coordinates(
    rows: Iterator[Array],
    samples: int,
    every: int,
    exact: bool,
    together: Collective,
    *,
    narrow: bool,
) -> NullSpace:
    """Return coordinates of ``X``, given in chunks of about one row in ``every``.

    ``exact``: only what is null matters, and that to the rounding of ``X``. ``narrow``: small
    energies do not matter, so that the dtype of the rows is wide enough.
    """
    first = next(rows)
    xp, features = ar.namespace(first), first.shape[-1]
    if samples // every <= features:
        x = together.rows(xp.concat([first, *rows], axis=-2))
        if x.shape[-2] <= features:
            return _by_qr(x, samples, exact)
        first, rows, together = x, iter(()), Collective()
    wider = ar.double(first[..., :0, :]).dtype != first.dtype
    if wider or not exact:
        return _by_gram(chain([first], rows), samples, together, narrow=narrow)
    return _by_stream(chain([first], rows), samples, together)


def _by_qr(x: Array, samples: int, exact: bool) -> NullSpace:
    """Return the coordinates of ``x`` (..., n, d), ``n <= d``, which stands for all samples."""
    xp, rows = ar.namespace(x), x.shape[-2]
    share = (samples / rows) ** 0.5
    basis, r = xp.linalg.qr(xp.matrix_transpose(x), mode="reduced")
    if _broken(r):
        return _closed(x, samples)
    made = NullSpace(basis, None, ar.norm(r) * share, exact, rows)
    if exact and _independent(r, _tolerance(basis, rows)):
        return made
    if exact:
        turn, values, _ = xp.linalg.svd(r, full_matrices=False)
        turn, energies = xp.flip(turn, axis=-1), xp.flip(values, axis=-1) ** 2
    else:  # X^T X = Q (R R^T) Q^T: the small matrix carries the whole spectrum
        energies, turn = _eigh(r @ xp.matrix_transpose(r))
    return replace(made, basis=basis @ turn, energies=xp.clip(energies, 0.0) * share**2)


def _by_gram(
    chunks: Iterator[Array], samples: int, together: Collective, *, narrow: bool
) -> NullSpace:
    """Return the coordinates from the streamed Gram matrix, which may be ``narrow``."""
    gram, rows = 0.0, 0
    for chunk in chunks:
        part = ar.namespace(chunk).matrix_transpose(chunk) @ chunk if narrow else gram_matrix(chunk)
        gram, rows = gram + part, rows + chunk.shape[-2]
    gram, rows = together.sum(gram), int(together.sum(rows))
    xp = ar.namespace(gram)
    if _broken(gram):
        return _closed(gram, samples)
    energies, basis = _eigh(gram)
    energies = xp.clip(energies, 0.0) * (samples / rows)
    return NullSpace(basis, energies, xp.sqrt(xp.sum(energies)), False, rows)


def _by_stream(chunks: Iterator[Array], samples: int, together: Collective) -> NullSpace:
    """Return the coordinates from the triangular factor of all rows, a chunk at a time."""
    r = None
    for chunk in chunks:
        xp = ar.namespace(chunk)
        r = xp.linalg.qr(chunk if r is None else xp.concat([r, chunk], axis=-2), mode="reduced")[1]
    r = together.rows(r)
    xp = ar.namespace(r)
    if _broken(r):
        return _closed(r, samples)
    _, values, vt = xp.linalg.svd(r, full_matrices=False)
    basis, energies = xp.flip(xp.matrix_transpose(vt), axis=-1), xp.flip(values, axis=-1) ** 2
    return NullSpace(basis, energies, ar.norm(r), True, samples)


def _broken(x: Array) -> bool:
    """Tell whether a matrix is known not to be finite: it has no factorisation."""
    return ar.known(~ar.namespace(x).all(ar.namespace(x).isfinite(x)))


def _closed(like: Array, samples: int) -> NullSpace:
    """Return the space of rows (..., n, d) that are not finite: no certificate of it is finite."""
    xp = ar.namespace(like)
    size = xp.full_like(xp.max(like), xp.nan)
    return _without_basis(like, like.shape[-1], size, samples)


def _without_basis(like: Array, features: int, size: Array, samples: int) -> NullSpace:
    """Return the space in which every direction is free."""
    shape = (*like.shape[:-2], features, 0)
    basis = ar.namespace(like).zeros(shape, dtype=like.dtype, device=ar.place(like))
    return NullSpace(basis, None, size, True, samples)


def _independent(r: Array, tolerance: float) -> bool:
    """Tell whether a triangular factor (..., n, n) is known to have full rank.

    ``1 / ||R^-1||_F`` is at most the smallest singular value.
    """
    if ar.traced(r):
        return False
    xp, size = ar.namespace(r), float(ar.norm(r))
    if not float(xp.min(xp.abs(xp.linalg.diagonal(r)))) > tolerance * size:
        return False
    return float(ar.norm(xp.linalg.inv(r))) * tolerance * size < 1


def _eigh(gram: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors; subnormal entries would keep LAPACK from converging."""
    xp, tiny = ar.namespace(gram), ar.tiny(gram) / ar.eps(gram)
    energies, basis = xp.linalg.eigh(xp.where(xp.abs(gram) < tiny, xp.zeros_like(gram), gram))
    return energies, basis


def gram_matrix(x: Array) -> Array:
    """Return ``x^T x`` in float64 where there is one, shape (..., d, d), for ``x`` (..., n, d).

    Rows are converted ``CHUNK`` at a time: a float64 copy of all inputs would be the largest thing
    a teleport holds.
    """
    xp, rows = ar.namespace(x), x.shape[-2]
    gram: Array = 0.0
    for start in range(0, rows, CHUNK):
        part = ar.double(x[..., start : min(start + CHUNK, rows), :])
        gram = gram + xp.matrix_transpose(part) @ part
    return gram


def budget_gain(energies: Array, coefficients: Array, outside: Array, ratio: Array) -> Array:
    """Return the gains that meet an output change of ``ratio`` per unit of length.

        max <D, N>   subject to   ||N X^T|| <= e,   ||N|| <= r

    has the solution ``N = D (I + s X^T X)^-1`` up to a factor. With ``c_k = ||D u_k||^2``, the
    output change per unit of length,

        q(s)^2 = sum_k energies_k c_k / (1 + s energies_k)^2 / sum_k c_k / (1 + s energies_k)^2,

    falls monotonically in ``s``; the budget is met where ``q(s) = ratio = e / r``.

    Takes the eigenvalues of ``X^T X`` and ``||D u_k||^2`` along each eigenvector, shape (k,) each;
    the squared length of ``D`` outside their span, and the ratio, 0-d both. Gains are in (0, 1],
    shape (k,): 1 where the budget does not bind; where even the smallest energy exceeds it, those
    of the limit ``s -> infinity``, up to a factor.
    """
    xp = ar.namespace(energies)
    ratio = xp.astype(ratio, energies.dtype, copy=False)
    top = xp.max(energies)
    top = xp.maximum(top, xp.full_like(top, ar.tiny(energies) * 1e8))
    relative, limit = energies / top, ratio * ratio / top

    def quotient(s: Array) -> Array:
        """Return ``q(s)^2`` on a grid (g,), of energies relative to the largest."""
        weight = (1 / (1 + s[:, None] * relative)) ** 2 * coefficients
        length = xp.sum(weight, axis=-1) + outside
        return xp.sum(weight * relative, axis=-1) / ar.positive(length)

    low, high = xp.full_like(top, -12.0), xp.full_like(top, 30.0)
    last = float(GRID - 1)
    steps = xp.arange(GRID, dtype=energies.dtype, device=ar.place(energies)) / last
    for _ in range(ROUNDS):
        width = high - low
        above = quotient(xp.exp(low + steps * width)) > limit
        # q falls with s: the number of grid points above the limit brackets the root.
        index = xp.sum(xp.astype(above, width.dtype))
        low = low + width * xp.clip(index - 1, 0.0, last) / last
        high = xp.minimum(low + width / last, high)
    free = quotient(0 * steps[:1])[0]
    s = xp.where(free <= limit, xp.zeros_like(high), xp.exp(high))
    return 1 / (1 + s * relative)
