"""Spectral filters: what is left of a direction when the layer's output must not change.

A direction ``D`` (..., out, d) is written in the eigenbasis of the Gram matrix of the inputs,
``X^T X = U diag(energies) U^T``, and every coordinate is multiplied by a gain in [0, 1]:

    N = D (I - U diag(1 - gain) U^T),      gain = 1 outside the row space.

The exact projection has gain 0 on the whole row space; ``threshold`` has gain 1 also on the
trailing eigen-directions that hold at most a share tau of the energy. The d x d projector is never
formed, and gains are masks rather than slices, so that all of this runs under jit.
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace, device

from nullport._arrays import Array, norm
from nullport._rowspace import RowSpace


@dataclass(frozen=True)
class Filter:
    """A spectral filter on the inputs of a layer.

    Attributes:
        space: The row space it acts on.
        gain: What is kept of each coordinate, shape (..., k); None stands for 0 everywhere.
    """

    space: RowSpace
    gain: Array | None

    def apply(self, d: Array) -> Array:
        """Return ``N`` for a direction, or any rows, ``d`` of shape (..., m, features)."""
        xp = array_namespace(d)
        basis = xp.astype(self.space.basis, d.dtype, copy=False)
        back = xp.matrix_transpose(basis)
        if self.gain is None:
            if self.space.complete:
                return xp.zeros_like(d)
            # Twice is enough: the second pass removes what rounding left in the row space.
            d = d - (d @ basis) @ back
            return d - (d @ basis) @ back
        gain = xp.astype(self.gain, d.dtype, copy=False)[..., None, :]
        if self.space.complete:
            return ((d @ basis) * gain) @ back
        return d - ((d @ basis) * (1 - gain)) @ back

    def rank(self) -> Array:
        """Return the number of constrained directions per matrix, shape (...)."""
        xp = array_namespace(self.space.basis)
        stack = self.space.basis.shape[:-2]
        where = {"device": device(self.space.basis)}
        if self.gain is None:
            return xp.full(stack, self.space.basis.shape[-1], dtype=xp.int64, **where)
        return xp.sum(xp.astype(self.gain < 0.5, xp.int64), axis=-1)

    def output_change(self, n: Array, input_norm: Array | None = None) -> Array:
        """Return a bound on ``||N X^T||_F``, a 0-d array, before anything moves.

        The filtered value ``sum_k energies_k ||N u_k||^2`` is exact where the energies are known;
        rounding is covered by ``eps sqrt(d) ||N|| ||X||``.

        Args:
            n: The move, shape (..., out, features).
            input_norm: ``||X||_F``, needed where the energies are not known.

        Raises:
            ValueError: If neither the energies nor ``input_norm`` are known.
        """
        xp = array_namespace(n)
        energies = self.space.energies
        if energies is None and input_norm is None:
            msg = "without energies the bound needs input_norm"
            raise ValueError(msg)
        eps = float(xp.finfo(n.dtype).eps) * self.space.features**0.5
        if energies is None:
            return eps * norm(n) * input_norm
        energies = xp.astype(xp.clip(energies, 0.0), n.dtype)
        coordinates = n @ xp.astype(self.space.basis, n.dtype, copy=False)
        exact = xp.sqrt(xp.sum(energies[..., None, :] * coordinates**2))
        return exact + eps * norm(n) * xp.sqrt(xp.sum(energies))


def threshold_filter(space: RowSpace, tau: float) -> Filter:
    """Return the filter that frees the trailing directions holding at most ``tau`` of the energy.

    ``tau = 0`` is the exact null space: with a complete basis, directions whose energy is rounding
    (a share of at most ``d eps``) count as null.

    Args:
        space: Row space, with energies unless ``tau`` is 0 and the basis is not complete.
        tau: Share of the energy that may be given up, in [0, 1].

    Raises:
        ValueError: If the energies are needed and not there.
    """
    if space.energies is None:
        if tau > 0:
            msg = f"threshold {tau} needs the spectrum of the inputs"
            raise ValueError(msg)
        return Filter(space, None)
    xp = array_namespace(space.energies)
    energies = xp.clip(space.energies, 0.0)
    rounding = space.features * float(xp.finfo(energies.dtype).eps)
    total = xp.sum(energies, axis=-1, keepdims=True)
    free = xp.cumulative_sum(energies, axis=-1) <= max(tau, rounding) * total
    if tau == 0 and not space.complete:
        free = xp.zeros_like(free)
    return Filter(space, xp.astype(free, energies.dtype))
