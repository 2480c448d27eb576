"""The site of a convolution: patches, larger than the input, are made a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from nullport.network import Array, namespace
from nullport_arrays.layers import Linear

ELEMENTS = 2**23
"""Elements of the patches that are held at a time."""


@dataclass(frozen=True)
class PatchSite:
    """One use of a weight by a linear layer on patches of its input.

    Attributes:
        layer: The layer.
        weight: Its weight now, as the matrix (..., out, in).
        inputs: Its input, samples first.
        cotangent: Cotangent of its output, samples first.
        output_norm: Frobenius norm of ``X W^T``, 0-d.
    """

    layer: Linear
    weight: Array
    inputs: Array
    cotangent: Array
    output_norm: Array

    @property
    def kind(self) -> str:
        """Name of the operation."""
        return self.layer.kind

    @property
    def samples(self) -> int:
        """Number of patches."""
        return prod(self.cotangent.shape[:-1])

    def _spans(self) -> Iterator[slice]:
        images = self.inputs.shape[0]
        each = self.samples // images * self.weight.shape[-1] * prod(self.weight.shape[:-2])
        step = max(1, ELEMENTS // max(each, 1))
        for start in range(0, images, step):
            yield slice(start, min(start + step, images))

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield patches (..., n, in) of a few samples at a time, about one in ``every``."""
        for span in self._spans():
            rows = self.layer.rows(self.inputs[span, ...])
            yield rows if every == 1 else rows[..., ::every, :]

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias``, shape (..., samples, out)."""
        parts = [self._product(x, weight) for x in self.rows()]
        output = parts[0] if len(parts) == 1 else namespace(weight).concat(parts, axis=-2)
        return output if bias is None else output + bias[..., None, :]

    def _product(self, rows: Array, weight: Array) -> Array:
        xp = namespace(weight)
        return xp.astype(rows, weight.dtype, copy=False) @ xp.matrix_transpose(weight)

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``delta^T X`` (..., out, in) at ``inputs``, or (..., 1, in) with ``probe``."""
        xp, total = namespace(inputs), None
        for span in self._spans():
            delta = xp.astype(self._deltas(span), inputs.dtype, copy=False)
            if probe is not None:
                delta = (delta @ probe)[..., None]
            part = xp.matrix_transpose(delta) @ self.layer.rows(inputs[span, ...])
            total = part if total is None else total + part
        return total

    def _deltas(self, span: slice) -> Array:
        return self.layer.cotangent_rows(self.cotangent[span, ...])

    def bias_gradient(self) -> Array:
        """Return the sum of ``delta`` over all patches, shape (..., out)."""
        return namespace(self.cotangent).sum(self.layer.cotangent_rows(self.cotangent), axis=-2)
