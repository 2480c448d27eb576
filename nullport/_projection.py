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
from functools import cached_property
from math import prod
from typing import Protocol

from array_api_compat import is_lazy_array

from nullport._arrays import Array, namespace, norm, place, widen
from nullport._rowspace import RowSpace

ENOUGH = 0.25
"""Share of a direction that one pass of projection must leave for a second to be skipped."""


class Step(Protocol):
    """A move of a weight, possibly in factors."""

    @property
    def right(self) -> Array:
        """The move, or its right factor."""

    def outputs(self, rows: Array) -> Array:
        """Return ``rows N^T``, shape (..., m, out)."""


@dataclass(frozen=True)
class Spectral:
    """What every filter on the spectrum of a layer's inputs has in common.

    Attributes:
        space: The row space it acts on.
    """

    space: RowSpace

    def given_up(self, step: Step) -> Array:
        """Return ``||N X^T||_F`` from the spectrum, a 0-d array, before anything moves.

        The value is the root of ``sum_k energies_k ||N u_k||^2``, with every energy raised by what
        the eigendecomposition cannot resolve.

        Args:
            step: The move ``N``, equivalent to shape (..., out, features).

        Raises:
            ValueError: If the energies are not known (an exact basis: nothing is given up).
        """
        if self.space.energies is None:
            msg = "the energies of this row space were not computed"
            raise ValueError(msg)
        xp = namespace(self.space.basis)
        dtype = step.right.dtype
        energies = xp.clip(self.space.energies, 0.0)
        unresolved = 4 * float(xp.finfo(energies.dtype).eps)
        energies = energies + unresolved * xp.sum(energies, axis=-1, keepdims=True)
        energies = xp.astype(energies, dtype)
        basis = xp.astype(self.space.basis, dtype, copy=False)
        coordinates = step.outputs(xp.matrix_transpose(basis))
        return xp.sqrt(xp.sum(energies[..., :, None] * coordinates**2))

    def rounding(self, input_norm: Array) -> Array:
        """Return what rounding may add to ``||N X^T||_F`` per unit of ``||N||``, 0-d.

        Args:
            input_norm: ``||X||_F``, 0-d, without the constant input of a bias.
        """
        xp = namespace(input_norm)
        inputs = xp.sqrt(input_norm**2 + self.space.samples)
        return 4 * float(xp.finfo(inputs.dtype).eps) * self.space.features**0.5 * inputs

    def _count(self, free: Array) -> Array:
        """Number of free directions over the whole stack, 0-d, given which columns are free."""
        xp, basis = namespace(self.space.basis), self.space.basis
        outside = prod(basis.shape[:-2]) * (self.space.features - basis.shape[-1])
        return xp.sum(xp.astype(free, xp.int32)) + outside


@dataclass(frozen=True)
class Filter(Spectral):
    """A filter with fixed gains.

    Attributes:
        space: The row space it acts on.
        gain: What is kept of each coordinate, shape (..., k); None stands for 0 everywhere.
    """

    gain: Array | None

    def apply(self, d: Array) -> Array:
        """Return ``N`` for a direction, or any rows, ``d`` of shape (..., m, features)."""
        return self.measured(d)[0]

    def measured(self, d: Array) -> tuple[Array, Array, Array]:
        """Return ``N`` for ``d``, ``||N||`` and ``||d||``, the norms 0-d."""
        total = norm(d)
        if self.gain is not None:
            free = filtered(self.space, self.gain, d)
            return free, norm(free), total
        xp = namespace(d)
        if self.space.complete:
            return xp.zeros_like(d), xp.zeros_like(total), total
        basis = xp.astype(self.space.basis, d.dtype, copy=False)
        back = xp.matrix_transpose(basis)
        once = d - (d @ basis) @ back
        # A direction is scaled up to its radius, and with it what rounding left of it in the row
        # space: once is enough only where much was left. Under jit nothing can be asked, so twice.
        if not is_lazy_array(d) and float(kept := norm(once)) > ENOUGH * float(total):
            return once, kept, total
        free = once - (once @ basis) @ back
        return free, norm(free), total

    @cached_property
    def free(self) -> Array:
        """Number of free directions over the whole stack, 0-d."""
        if self.gain is not None:
            return self._count(self.gain >= 0.5)
        basis = self.space.basis
        none = namespace(basis).zeros((0,), dtype=basis.dtype, device=place(basis))
        return self._count(none > 0)

    @property
    def empty(self) -> Array:
        """Whether no direction is free, 0-d bool."""
        return self.free == 0


def filtered(space: RowSpace, gain: Array, d: Array, coordinates: Array | None = None) -> Array:
    """Multiply the coordinates of ``d`` (..., m, features) in the basis by ``gain`` (..., k).

    ``coordinates`` are ``d U``, shape (..., m, k), where they are known already.
    """
    xp = namespace(d)
    basis = xp.astype(space.basis, d.dtype, copy=False)
    back = xp.matrix_transpose(basis)
    gain = xp.astype(gain, d.dtype, copy=False)[..., None, :]
    coordinates = d @ basis if coordinates is None else coordinates
    if space.complete:
        return (coordinates * gain) @ back
    return d - (coordinates * (1 - gain)) @ back


def unfiltered(like: Array, features: int, samples: int) -> Filter:
    """Return the filter that leaves every direction as it is, in the namespace of ``like``."""
    xp, like = namespace(like), widen(like)
    basis = xp.zeros((features, 0), dtype=like.dtype, device=place(like))
    return Filter(RowSpace(basis, None, complete=False, samples=samples), None)


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
    xp = namespace(space.energies)
    energies = xp.clip(space.energies, 0.0)
    rounding = space.features * float(xp.finfo(energies.dtype).eps)
    total = xp.sum(energies, axis=-1, keepdims=True)
    free = xp.cumulative_sum(energies, axis=-1) <= max(tau, rounding) * total
    if tau == 0 and not space.complete:
        free = xp.zeros_like(free)
    return Filter(space, xp.astype(free, energies.dtype))
