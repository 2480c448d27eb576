"""Losses, means over all positions, with the cotangent of what the network returned.

CrossEntropy    L = mean of log(sum(exp(z))) - z[target],   dz = (softmax(z) - onehot) / count
SquaredError    L = mean of (z - target)^2,                 dz = 2 (z - target) / size
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from array_api_compat import device

from nullport.network import Array, namespace


class Loss(Protocol):
    """A function of a network's outputs and of targets."""

    def value(self, outputs: Array, targets: Array) -> Array:
        """Return the loss, 0-d.

        Raises:
            ValueError: If outputs and targets do not go together.
        """

    def value_and_cotangent(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the loss, 0-d, and its derivative by ``outputs``, shaped like them."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Minus the logarithm of the probability of the target, from logits.

    Outputs are logits (..., classes), targets integers (...) from 0 to ``classes - 1``.
    """

    def value(self, outputs: Array, targets: Array) -> Array:
        """Return the mean over all positions.

        Raises:
            ValueError: If the shape of the targets is not that of the outputs but for the last
                axis, or they are not integers.
        """
        logarithms, chosen = self._parts(outputs, targets)
        return self._mean(logarithms, chosen)

    def value_and_cotangent(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean, and the cotangent of the logits."""
        logarithms, chosen = self._parts(outputs, targets)
        count = math.prod(targets.shape)
        excess = namespace(outputs).exp(logarithms) - chosen
        return self._mean(logarithms, chosen), excess * (1.0 / count)

    def _mean(self, logarithms: Array, chosen: Array) -> Array:
        xp = namespace(logarithms)
        return -xp.mean(xp.sum(chosen * logarithms, axis=-1))

    def _parts(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the logarithms of the probabilities, and one-hot rows of the targets."""
        xp = namespace(outputs)
        check_shapes(targets, outputs.shape[:-1])
        if not xp.isdtype(targets.dtype, "integral"):
            msg = f"CrossEntropy got targets of dtype {targets.dtype}; expected: an integer dtype"
            raise ValueError(msg)
        shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
        total = xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
        classes = xp.arange(outputs.shape[-1], device=device(targets))
        return shifted - total, xp.astype(targets[..., None] == classes, outputs.dtype)


@dataclass(frozen=True)
class SquaredError(Loss):
    """The mean squared difference of outputs and targets, which have the same shape."""

    def value(self, outputs: Array, targets: Array) -> Array:
        """Return the mean over all elements.

        Raises:
            ValueError: If the shapes differ.
        """
        error = self._error(outputs, targets)
        return namespace(error).mean(error * error)

    def value_and_cotangent(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean, and the cotangent of the outputs."""
        error = self._error(outputs, targets)
        size = math.prod(outputs.shape)
        return namespace(error).mean(error * error), error * (2.0 / size)

    def _error(self, outputs: Array, targets: Array) -> Array:
        check_shapes(targets, outputs.shape)
        return outputs - namespace(outputs).astype(targets, outputs.dtype, copy=False)


def check_shapes(targets: Array, expected: tuple[int, ...]) -> None:
    """Check the shape of the targets.

    Raises:
        ValueError: If it is not the expected one, or holds nothing.
    """
    if tuple(targets.shape) != tuple(expected) or 0 in expected:
        allowed = f"{tuple(expected)}, and not empty"
        msg = f"targets have shape {tuple(targets.shape)}; expected: {allowed}"
        raise ValueError(msg)
