"""The budget projection: most gain for a given output change and a given length.

    max <D, N>   subject to   ||N X^T||_F <= e,   ||N||_F <= r

has the solution ``N = D (mu I + nu X^T X)^-1``: a smooth filter on the same eigendecomposition as
every other projection, where ``threshold`` is a step. With ``s = nu / mu``, the gains are
``1 / (1 + s energies)``, and ``s`` is the root of a secular equation: the output change per unit of
length,

    q(s)^2 = sum_k energies_k c_k / (1 + s energies_k)^2  /  sum_k c_k / (1 + s energies_k)^2,

``c_k = ||D u_k||^2`` (outside the row space the energy is 0), falls monotonically in ``s``, and the
budget is met where ``q(s) = e / r``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nullport._arrays import Array, namespace, norm, place
from nullport._projection import Spectral, filtered

GRID = 33
ROUNDS = 6
"""Each round narrows the bracket of log s by ``GRID - 1``: 32^6 = 1e9 in all."""


@dataclass(frozen=True)
class BudgetFilter(Spectral):
    """The filter of the budget projection; its gains depend on the direction.

    Attributes:
        space: The row space it acts on, with energies.
        change: Allowed ``||N X^T||_F``, 0-d.
        length: Allowed ``||N||_F``, 0-d.
    """

    change: Array
    length: Array

    def apply(self, d: Array) -> Array:
        """Return the best direction for ``d`` (..., out, features), up to its length."""
        xp, energies = namespace(d), self.space.energies
        if energies is None:
            msg = "the budget projection needs the spectrum of the inputs"
            raise ValueError(msg)
        energies = xp.clip(energies, 0.0)
        coordinates = d @ xp.astype(self.space.basis, d.dtype, copy=False)
        squares = xp.astype(xp.sum(coordinates**2, axis=-2), energies.dtype)
        outside = xp.clip(xp.astype(norm(d) ** 2, energies.dtype) - xp.sum(squares), 0.0)
        if self.space.complete:
            outside = xp.zeros_like(outside)
        flat = budget_gain(
            xp.reshape(energies, (-1,)), xp.reshape(squares, (-1,)), outside, self._ratio
        )
        return filtered(self.space, xp.reshape(flat, energies.shape), d, coordinates)

    def measured(self, d: Array) -> tuple[Array, Array, Array]:
        """Return the best direction for ``d`` and the norms of both, 0-d."""
        free = self.apply(d)
        return free, norm(free), norm(d)

    @property
    def _ratio(self) -> Array:
        xp = namespace(self.length)
        tiny = float(xp.finfo(self.length.dtype).smallest_normal)
        return self.change / xp.clip(self.length, tiny)

    @cached_property
    def free(self) -> Array:
        """Number of directions along which a whole step stays within the budget, 0-d."""
        xp = namespace(self.space.basis)
        ratio = xp.astype(self._ratio, self.space.basis.dtype)
        return self._count(self.space.energies <= ratio**2)

    @property
    def empty(self) -> Array:
        """Never: every direction can be taken a little way, 0-d bool."""
        return self.free < 0


def budget_gain(energies: Array, coefficients: Array, outside: Array, ratio: Array) -> Array:
    """Return the gains that meet an output change of ``ratio`` per unit of length.

    Args:
        energies: Eigenvalues of ``X^T X``, shape (..., k).
        coefficients: ``||D u_k||^2`` along each eigenvector, shape (..., k).
        outside: Squared length of ``D`` outside the span of the eigenvectors, shape (...).
        ratio: Allowed ``||N X^T|| / ||N||``, 0-d or of shape (...).

    Returns:
        Gains in (0, 1], shape (..., k): 1 where the budget does not bind; where even the smallest
        energy exceeds it, those of the limit ``s -> infinity``, up to a factor.
    """
    xp = namespace(energies)
    ratio = xp.astype(ratio, energies.dtype)
    top = xp.max(energies, axis=-1)
    tiny = float(xp.finfo(energies.dtype).smallest_normal) * 1e8
    top = xp.where(top > tiny, top, xp.full_like(top, tiny))
    low, high = xp.full_like(top, -12.0), xp.full_like(top, 30.0)
    steps = xp.arange(GRID, dtype=energies.dtype, device=place(energies)) / (GRID - 1)
    scaled = energies / top[..., None]
    limit = (ratio * ratio / top)[..., None]
    for _ in range(ROUNDS):
        width = high - low
        grid = low[..., None] + steps * width[..., None]
        above = xp.astype(
            _quotient(scaled, coefficients, outside, xp.exp(grid)) > limit, grid.dtype
        )
        # q falls with s: the number of grid points above the limit brackets the root.
        index = xp.sum(above, axis=-1)
        last = float(GRID - 1)
        low = low + width * xp.clip(index - 1, 0.0, last) / last
        high = xp.minimum(low + width / last, high)
    s = xp.exp(high)
    free = _quotient(scaled, coefficients, outside, xp.zeros_like(s)[..., None])[..., 0]
    s = xp.where(free <= limit[..., 0], xp.zeros_like(s), s)
    return 1 / (1 + s[..., None] * scaled)


def _quotient(energies: Array, coefficients: Array, outside: Array, s: Array) -> Array:
    """Return ``q(s)^2`` on a grid ``s`` (..., g) of energies (..., k) scaled to at most 1."""
    xp = namespace(energies)
    gain = 1 / (1 + s[..., :, None] * energies[..., None, :])
    weight = gain**2 * coefficients[..., None, :]
    length = xp.sum(weight, axis=-1) + outside[..., None]
    change = xp.sum(weight * energies[..., None, :], axis=-1)
    return change / xp.where(length > 0, length, xp.ones_like(length))
