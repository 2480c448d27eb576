"""Sites: one use of a weight by a linear map on rows.

    Y = X W^T + b    X (samples, in), W (out, in), Y (samples, out); delta = dL/dY like Y

A convolution is the same map on patches. Stacks of matrices (grouped convolutions, experts) carry
leading axes: ``X`` (..., samples, in), ``W`` (..., out, in).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nullport._arrays import Array, namespace


class Site(Protocol):
    """One use of a weight by a linear map.

    Attributes:
        kind: Name of the operation, for the report.
        samples: Number of rows of ``X``.
        inputs: The layer's input as the framework holds it; tangents have the same shape.
        cotangent: ``delta`` as the framework holds it, or None if the loss does not depend
            differentiably on this use (it still constrains the null space).
        output_norm: Frobenius norm of ``X W^T``, 0-d.
    """

    @property
    def kind(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def inputs(self) -> Array: ...
    @property
    def cotangent(self) -> Array | None: ...
    @property
    def output_norm(self) -> Array: ...

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X`` in chunks of rows, each (..., n, in); about one row in ``every``."""

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias`` for ``weight`` (..., out, in) and ``bias`` (..., out).

        Its shape is the framework's own: only its norm is asked for.
        """

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``delta^T X`` (..., out, in) evaluated at ``inputs`` instead of the site's own.

        With ``probe`` (out,) the cotangent is first contracted to one output: (..., 1, in).
        """

    def bias_gradient(self) -> Array:
        """Return the sum of ``delta`` over all rows, shape (..., out)."""


@dataclass(frozen=True)
class DenseSite:
    """A site of a plain matrix product.

    Attributes:
        kind: Name of the operation.
        inputs: ``X``, shape (..., samples, in).
        cotangent: ``delta``, shape (..., samples, out), or None.
        output_norm: Frobenius norm of ``X W^T``.
    """

    kind: str
    inputs: Array
    cotangent: Array | None
    output_norm: Array

    @property
    def samples(self) -> int:
        """Number of rows of ``X``."""
        return int(self.inputs.shape[-2])

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X``, or one row in ``every``, in one piece."""
        yield self.inputs if every == 1 else self.inputs[..., ::every, :]

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias``, shape (..., samples, out)."""
        xp = namespace(weight)
        inputs = xp.astype(self.inputs, weight.dtype, copy=False)
        output = inputs @ xp.matrix_transpose(weight)
        return output if bias is None else output + bias[..., None, :]

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``delta^T inputs``, shape (..., out, in), or (..., 1, in) with ``probe``.

        Raises:
            ValueError: If the site has no cotangent.
        """
        if self.cotangent is None:
            msg = "this site has no cotangent: the loss does not depend on it"
            raise ValueError(msg)
        xp = namespace(inputs)
        delta = xp.astype(self.cotangent, inputs.dtype, copy=False)
        if probe is not None:
            delta = (delta @ probe)[..., None]
        return xp.matrix_transpose(delta) @ inputs

    def along(self, inputs: Array) -> Array:
        """Return ``inputs g^T`` (..., n, out), ``g = delta^T X``, for ``inputs`` (..., n, in).

        It is what a move of the weight along its gradient adds to the outputs; ``g`` is not formed.
        """
        xp = namespace(inputs)
        return (inputs @ xp.matrix_transpose(self.inputs)) @ self.cotangent

    def bias_gradient(self) -> Array:
        """Return the sum of ``delta`` over the rows, shape (..., out)."""
        return namespace(self.cotangent).sum(self.cotangent, axis=-2)
